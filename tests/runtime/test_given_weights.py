"""Weights that stages of their own give: who must read them, and how long they stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.fake_bundle import edit_manifest, write_fake_bundle

from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.engines.standing import Standing
from s3diff_runtime.errors import BundleError


def test_the_least_recently_asked_for_leaves() -> None:
    made: list[str] = []

    def ask(key: str) -> str:
        return standing.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    standing = Standing[str](2)
    assert [ask(key) for key in "abab"] == ["A", "B", "A", "B"]
    assert made == ["a", "b"]
    ask("c")
    ask("b")
    assert made == ["a", "b", "c"]
    ask("a")
    assert made == ["a", "b", "c", "a"]


def test_room_is_made_before_the_next_is_computed() -> None:
    standing = Standing[list[int]](1)
    held = standing.get("first", lambda: [1])
    assert standing.get("first", list) is held
    with pytest.raises(MemoryError):
        standing.get("second", lambda: (_ for _ in ()).throw(MemoryError))
    assert standing.get("first", lambda: [2]) == [2], "it left for one that failed"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda stages: stages.pop("unet_weights"), "stage unet_weights is missing"),
        (
            lambda stages: stages["unet_weights"]["outputs"].clear(),
            "unet_weights lacks the output unet_weights",
        ),
        (
            lambda stages: stages["unet"]["inputs"][-1].update(name="unet_weights.other"),
            "stage unet lacks anything that makes its input unet_weights.other",
        ),
        (
            lambda stages: stages["unet"]["inputs"][-1].update(shape=[1, 1, 1, 2]),
            "of stage unet is float32 [1, 1, 1, 2], and what gives it says float32 [1, 1, 1, 1]",
        ),
        (lambda stages: stages["vae_encoder"]["inputs"].pop(), "stage vae_weights is not expected"),
    ],
)
def test_weights_are_given_to_those_that_read_them(
    tmp_path: Path, edit: Callable[[Any], object], expected: str
) -> None:
    fused = write_fake_bundle(tmp_path, "fused")
    edit_manifest(fused, lambda content: edit(content["stages"]))
    with pytest.raises(BundleError) as refusal:
        Manifest.read(fused)
    assert expected in str(refusal.value)
