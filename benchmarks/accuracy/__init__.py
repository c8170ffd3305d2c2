"""Accuracy of features against the CPU time that their training takes."""
