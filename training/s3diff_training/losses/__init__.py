"""Losses of training (paper section 3.3): perceptual distance and the adversary."""
