"""Command line tools: one script for each job, installed as console commands."""
