"""Builds and batches that are killed at any time: what was there stays whole, and the next run cleans up."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.export.models import Files
from tests.runtime.fake_bundle import write_fake_bundle

from s3diff_runtime.bundle.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
BUILDS, BATCHES = 60, 100


def command(*arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "s3diff_export", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def took(*arguments: object) -> float:
    start = time.monotonic()
    process = command(*arguments)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return time.monotonic() - start


def kill(process: subprocess.Popen[str], after: float) -> bool:
    """Whether the process still ran then."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".s3diff-*")]


def test_killed_builds(files: Files, tmp_path: Path) -> None:
    bundle, chance = tmp_path / "kept.bundle", random.Random(0)
    graphs = ("--lora-mode", "fused", "--precision", "fp32", "--color-fix", "none", "--no-verify")
    arguments = ("build", *files.arguments(), *graphs, "-o", bundle, "--force")
    long = max(took(*arguments) for _ in range(2))
    landed = 0
    for number in range(BUILDS):
        landed += kill(command(*arguments), chance.uniform(0.4, 1.0) * long)
        assert Manifest.read(bundle, "hashes"), f"after kill {number}"
    assert landed > BUILDS / 2
    took(*arguments)
    assert leftovers(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]


def test_killed_batches(tmp_path: Path) -> None:
    bundle, chance = write_fake_bundle(tmp_path / "fake.bundle", "dynamic"), random.Random(1)
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 80, (150, 200, 3), np.uint8)
        Image.fromarray(noise).save(photos / f"{number:02}.png")
    arguments = ("upscale", photos, "-o", output, "--bundle", bundle, "--threads", 1)
    long = took(*arguments, "--force")
    whole = {path.name: path.read_bytes() for path in output.iterdir()}
    assert len(whole) == 40
    landed = 0
    for number in range(BATCHES):
        if number % 10 == 0:
            shutil.rmtree(output)
        landed += kill(command(*arguments, "--resume"), chance.uniform(0.2, 1.0) * long)
        found = {path.name: path.read_bytes() for path in output.glob("[!.]*")}
        assert all(content == whole[name] for name, content in found.items()), f"after kill {number}"
    assert landed > BATCHES / 3
    took(*arguments, "--resume")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == whole
    assert leftovers(tmp_path) == []
