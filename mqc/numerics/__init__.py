"""Integer arithmetic, rounding of weights, and layouts in memory: arrays, and no IR."""
