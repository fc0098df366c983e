"""Trained networks for other programs: a module per format."""
