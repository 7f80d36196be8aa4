"""The base of the ops, modules, and the constants that they name."""
