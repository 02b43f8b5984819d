"""Making training pairs: the second-order Real-ESRGAN degradation, with measured noise and blur levels."""
