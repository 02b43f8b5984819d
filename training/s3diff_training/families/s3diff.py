"""S3Diff: LoRA that the picture's degradation turns. Its network is `network.model`, which is trained."""

from pathlib import Path

from s3diff_training.checkpoints.native import build_network, checkpoint_of
from s3diff_training.families.family import Family, Loader
from s3diff_training.tensor_files import TensorFile


def _read(file: TensorFile, estimator: Path | None) -> Loader:
    checkpoint = checkpoint_of(file, estimator)
    return lambda base: build_network(base, checkpoint)


FAMILY = Family(
    "s3diff.pkl",
    lambda file: file.metadata is not None or {"unet_lora_target_modules", "w"} <= set(file.content),
    _read,
)
