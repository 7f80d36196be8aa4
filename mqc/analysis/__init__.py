"""What can be said of a module without changing it: values, validity, proofs, lifetimes."""
