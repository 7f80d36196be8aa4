"""The passes of mqc, one a file. Registered through the entry-point group `mqc.passes`."""
