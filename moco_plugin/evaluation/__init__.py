"""Evaluations of a backbone: nearest neighbours, linear classification and fine-tuning."""
