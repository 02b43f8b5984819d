"""The files in docker/: valid, and asking of the command line only what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from s3diff_runtime.command_line import command_of
from s3diff_runtime.serving.command import run_serve

DOCKER = Path(__file__).resolve().parents[1] / "docker"


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()))


def timeout_of(arguments: list[str]) -> float:
    """What `serve` understands of the arguments of a container."""
    assert arguments[0] == "serve"
    context = command_of(run_serve, "serve").make_context("serve", arguments[1:])
    assert context.params["host"] == "0.0.0.0"
    return float(context.params["timeout"])


@pytest.mark.parametrize("number", [0, 1])
def test_kubernetes_takes_the_manifests(number: int) -> None:
    kubernetes_validate.validate(manifests()[number], "1.33", strict=True)


def test_pods_have_longer_to_stop_than_pictures_have_to_be_done() -> None:
    pod = manifests()[0]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > timeout_of(pod["containers"][0]["args"]) + 5


def test_compose_gives_as_long() -> None:
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["serve"]
    assert float(service["stop_grace_period"].removesuffix("s")) > timeout_of(service["command"])
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
