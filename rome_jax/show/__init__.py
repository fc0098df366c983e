"""Output for people: pictures of cells, curves and the report."""
