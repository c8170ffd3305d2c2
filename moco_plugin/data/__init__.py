"""Image sets, views, and the order in which images are drawn."""
