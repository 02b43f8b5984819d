"""The small model that ships with the package; its card is `demo_model/CARD.md`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "demo_model"


class DemoModel(NamedTuple):
    """Where the shipped weights are: a base model in diffusers' layout, and a checkpoint for it."""

    base: Path
    checkpoint: Path


def demo_model() -> DemoModel:
    """The shipped small model, trained by this project's own commands on freely licensed photographs."""
    return DemoModel(FOLDER / "base", FOLDER / "checkpoint.safetensors")
