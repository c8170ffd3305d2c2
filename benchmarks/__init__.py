"""The measurements of the benchmark tool."""
