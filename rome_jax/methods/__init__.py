"""Search methods: the row of each, and the one step that reads it."""
