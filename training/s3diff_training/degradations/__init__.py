"""Making training pairs: the second-order Real-ESRGAN degradation, with measured noise and blur levels."""

from s3diff_training.degradations.kernels import (
    draw_final_sinc_kernels,
    draw_kernels,
    filter_images,
    gaussian_kernel,
    kernel_area,
    sinc_kernel,
)
from s3diff_training.degradations.pipeline import (
    BLUR_FULL_SCALE,
    NOISE_FULL_SCALE,
    DegradationPipeline,
    DegradedBatch,
)
from s3diff_training.degradations.settings import DegradationSettings, KernelSettings, StageSettings

__all__ = [
    "BLUR_FULL_SCALE",
    "NOISE_FULL_SCALE",
    "DegradationPipeline",
    "DegradationSettings",
    "DegradedBatch",
    "KernelSettings",
    "StageSettings",
    "draw_final_sinc_kernels",
    "draw_kernels",
    "filter_images",
    "gaussian_kernel",
    "kernel_area",
    "sinc_kernel",
]
