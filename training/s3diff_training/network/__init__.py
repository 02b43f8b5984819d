"""The network: base model, degradation-guided LoRA, modulation, estimator, one-step diffusion."""

from s3diff_training.network.base import BaseModel, load_base, one_step_alphas
from s3diff_training.network.color import bicubic_upscale, correct_color
from s3diff_training.network.config import (
    DECODER_TARGETS,
    ENCODER_AND_DECODER_TARGETS,
    ENCODER_TARGETS,
    UNET_TARGETS,
    NetworkConfig,
)
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.network.lora import ModulatedLoRA, lora_layers, merged_weight
from s3diff_training.network.model import ForwardPass, Restored, S3Diff
from s3diff_training.network.modulation import Modulation

__all__ = [
    "DECODER_TARGETS",
    "ENCODER_AND_DECODER_TARGETS",
    "ENCODER_TARGETS",
    "UNET_TARGETS",
    "BaseModel",
    "DegradationEstimator",
    "ForwardPass",
    "ModulatedLoRA",
    "Modulation",
    "NetworkConfig",
    "Restored",
    "S3Diff",
    "bicubic_upscale",
    "correct_color",
    "load_base",
    "lora_layers",
    "merged_weight",
    "one_step_alphas",
]
