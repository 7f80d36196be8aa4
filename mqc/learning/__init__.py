"""Learning ranges, scales and rounding; searching for where 16 bits pay."""
