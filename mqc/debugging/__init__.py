"""Comparing programs value by value, and tools for IR text."""
