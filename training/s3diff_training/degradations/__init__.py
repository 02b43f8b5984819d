"""Making training pairs: the second-order Real-ESRGAN degradation, with measured noise and blur levels."""

from s3diff_training.degradations.pipeline import DegradationPipeline, DegradedBatch

__all__ = ["DegradationPipeline", "DegradedBatch"]
