"""The table of families, and how one is found for a checkpoint."""

import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from s3diff_runtime.errors import CheckpointError, RequestError
from s3diff_runtime.families import FAMILIES, FamilyName, FamilyTraits
from s3diff_runtime.settings import PictureSettings
from s3diff_training.families.family import Family, Loader
from s3diff_training.tensor_files import open_tensor_file

_ARGUMENTS = {"prompt": "positive_prompt"}


def family_of(name: FamilyName) -> Family:
    """The row of a family: `FAMILY` of the module of its name."""
    family: Family = importlib.import_module(f"s3diff_training.families.{name}").FAMILY
    return family


def arguments_of(settings: PictureSettings, family: FamilyTraits) -> dict[str, Any]:
    """What was asked for, as arguments of `OneStepNetwork.restore`; what was not is left out."""
    named = {_ARGUMENTS.get(each.name, each.name): getattr(settings, each.name) for each in fields(settings)}
    tags = named.pop("tags")
    if tags is not None:
        named["positive_prompt"] = family.tags_prompt.format(tags=tags)
    return {name: value for name, value in named.items() if value is not None}


def read_weights(path: Path, estimator: Path | None, name: FamilyName | None) -> Loader:
    """What adapts a base model with a checkpoint.

    Args:
        path: the checkpoint.
        estimator: the released `de_net.pth`, for S3Diff.
        name: the family; None finds it by the checkpoint's content, and takes a file that no family is
            certain of for S3Diff's, whose reader says what it lacks.

    Raises:
        CheckpointError: when the file is missing, damaged, not whole, or of another family.
        RequestError: for an estimator that the family has no place for.
    """
    file = open_tensor_file(path)
    found = next((each for each in FAMILIES if family_of(each).recognises(file)), None)
    if name is not None and found is not None and found != name:
        raise CheckpointError(
            f"{path} is a checkpoint of {FAMILIES[found].title}; expected {FAMILIES[name].title}'s "
            f"{family_of(name).checkpoint}, or --family {found}"
        )
    chosen: FamilyName = name or found or "s3diff"
    if estimator is not None and not FAMILIES[chosen].estimates:
        raise RequestError(f"{FAMILIES[chosen].title} has no degradation estimator; leave out --estimator")
    return family_of(chosen).read(file, estimator)
