"""The supernet engine: one sampled cell in the memory of one path."""
