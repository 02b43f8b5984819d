"""Checkpoints: our one-file format, the released formats, and fitting either to a base model."""
