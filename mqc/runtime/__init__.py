"""Compiled programs: running, sampling, saving and loading. Needs neither torch nor transformers."""
