"""Search and retraining: the loop, its checkpoints and its metrics."""
