"""A campaign of faults; see `__main__`."""
