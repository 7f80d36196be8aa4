"""The backends of mqc, one a folder. Registered through the entry-point group `mqc.backends`."""
