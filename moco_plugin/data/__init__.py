"""Images in: folders and idx files, and the views that are made of them."""
