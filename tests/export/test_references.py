"""The truth that bundles are verified against, where it differs from what the network computes by itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
from tests.export.models import error, photographs, tiny_network
from tests.training.small import SMALL_RANKS

from s3diff_export.verification.cases import CheckCase, check_cases
from s3diff_export.verification.reference import references
from s3diff_runtime.bundle.manifest import Bin
from s3diff_training.network.base import BaseModel

IMAGE = photographs(1, 17, 22)[0]


def test_both_predictions_are_there_at_a_guidance_of_one(bases: dict[str, BaseModel]) -> None:
    """The bundle's graph takes any scale, so its negative prompt is compared too."""
    network = tiny_network(bases["f4"], replace(SMALL_RANKS, guidance=1.0))
    cases = [CheckCase(IMAGE, {"noise": 0.2, "blur": 0.7})]
    guided, alone = (references(network, cases, ("none",), guided)[0] for guided in (True, False))
    assert set(guided.tensors) - set(alone.tensors) == {"epsilon_negative"}
    for name, value in alone.tensors.items():
        np.testing.assert_array_equal(guided.tensors[name], value)
    assert error(guided.prediction_of(guided.tensors["x0"]), guided.tensors["epsilon_positive"]) <= 1e-5


def test_cases_cover_every_bin_or_the_corners() -> None:
    bins = [Bin(name=f"b{number}", noise=number / 4, blur=0.5) for number in range(4)]
    binned = check_cases([IMAGE, IMAGE[:16]], "s3diff", bins)
    assert [case.bin for case in binned] == ["b0", "b1", "b2", "b3"]
    assert [len(case.image) for case in binned] == [17, 16, 17, 16]
    assert binned[3].scores == {"noise": 0.75, "blur": 0.5}
    free = check_cases([IMAGE], "s3diff")
    assert [case.scores for case in free[:2]] == [{}, {"noise": 0.0, "blur": 0.0}]
    assert len(free) == 5


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "s3diff_export", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("s3diff-export ")
