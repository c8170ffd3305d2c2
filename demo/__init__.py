"""The demo: its images, its stages and its page."""
