"""What a person looks at: pictures of cells, curves, the report."""
