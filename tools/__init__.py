"""One short script a job; installed as console commands."""
