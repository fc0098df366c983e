"""The rows: a value of `method.Method` for each published method."""
