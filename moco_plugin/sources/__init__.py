"""Image sets that are neither a folder nor a list: tar shards, zip archives and idx files."""
