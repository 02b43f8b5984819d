"""The S3Diff network in PyTorch, its checkpoints, and the training of it."""
