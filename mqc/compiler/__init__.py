"""Pipelines of passes, what watches them, and recipes."""
