"""How far the network is from what the released code computed, quantity by quantity.

    python -m tests.training.released_parity ../shared/reference

prints it as a Markdown table. One row per quantity, the worst of all cases; the exit code is 1 where an error
exceeds its tolerance.

The released results are a folder: a small random model in the released formats (`base/`, `s3diff.pkl`,
`de_net.pth`), `reference.json` with the list of cases, and `reference.safetensors` with their results.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from safetensors.torch import load_file
from torch import Tensor

from s3diff_runtime.errors import RequestError
from s3diff_runtime.vocabulary import COLOR_FIXES
from s3diff_training.network.model import ForwardPass, S3Diff
from s3diff_training.weights import ModelSource

TOLERANCE = 1e-5
"""Largest relative error of everything up to the noise prediction, in float32."""
TOLERANCE_FROM_X0 = 1e-4
"""Likewise of x0, which magnifies the errors of the prediction 14.6 times, and of the image."""


@dataclass(frozen=True)
class Deviation:
    """The error of one quantity in one case; true where it is within its tolerance."""

    case: str
    """Name of the image and the degradation, `s0.d1`."""
    quantity: str
    absolute: float
    """Largest absolute difference."""
    relative: float
    """`absolute` over the largest magnitude of the released result."""
    tolerance: float
    """Limit of `relative`."""

    def __bool__(self) -> bool:
        return self.relative <= self.tolerance


def reference_network(folder: Path) -> S3Diff:
    """The network of the reference model.

    Raises:
        CheckpointError: when the folder lacks a part of the model.
    """
    return ModelSource(
        base=str(folder / "base"), checkpoint=folder / "s3diff.pkl", estimator=folder / "de_net.pth"
    ).load_s3diff("this reference")


def compare_with_reference(network: S3Diff, folder: Path) -> list[Deviation]:
    """Compute every case of the folder and compare every quantity that the released code left there.

    Raises:
        RequestError: when the folder holds no reference results.
    """
    try:
        cases = [
            case["key"].rstrip(".") for case in json.loads((folder / "reference.json").read_text())["cases"]
        ]
        truth = load_file(folder / "reference.safetensors")
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{folder} holds no reference results ({error}); "
            "expected reference.json and reference.safetensors"
        ) from error
    return [
        _deviation(case, name, found, expected)
        for case in cases
        for name, found, expected in _quantities(network, case, truth)
    ]


def worst_of_each(deviations: Sequence[Deviation]) -> list[Deviation]:
    """The case with the largest relative error of each quantity, in the order of the computation."""
    cases: dict[str, list[Deviation]] = {}
    for one in deviations:
        cases.setdefault(one.quantity, []).append(one)
    return [max(group, key=_badness) for group in cases.values()]


def _badness(deviation: Deviation) -> float:
    return math.inf if math.isnan(deviation.relative) else deviation.relative


@torch.no_grad()
def _quantities(
    network: S3Diff, case: str, truth: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """Name, ours, theirs. Every stage starts from our own result before it, as in use."""
    picture, config = case.split(".")[0], network.config
    lr = truth[f"{picture}.lr_u8"].permute(2, 0, 1)[None].float() / 255
    prepared = network.prepare(lr)
    positive, negative = (
        network.encode_prompts([p]) for p in (config.positive_prompt, config.negative_prompt)
    )
    forward: ForwardPass = network(
        prepared, truth[f"{case}.degradation"], positive, negative, config.guidance
    )
    yield "prepared image", prepared, truth[f"{picture}.padded"]
    yield "degradation estimate", network.estimator(lr), truth[f"{picture}.estimate"]
    yield "prompt, positive", positive, truth["text_pos"]
    yield "prompt, negative", negative, truth["text_neg"]
    yield "modulation, encoder", forward.modulation.vae, truth[f"{case}.vae_modulation"]
    yield "modulation, UNet", forward.modulation.unet, truth[f"{case}.unet_modulation"]
    yield "latent", forward.latent, truth[f"{case}.latent"]
    yield "ε, positive", forward.predictions["epsilon_positive"], truth[f"{case}.eps_pos"]
    yield "ε, negative", forward.predictions.get("epsilon_negative"), truth[f"{case}.eps_neg"]
    single = network.one_step.denoise(forward.latent, forward.predictions["epsilon_positive"])
    yield "x0, positive alone", single, truth[f"{case}.single.x0"]
    yield "x0, guided", forward.x0, truth[f"{case}.x0"]
    for fix in COLOR_FIXES:
        yield (
            f"image, colour fix {fix}",
            network.finish(forward.decoded, network.enlarge(lr), fix),
            truth[f"{case}.sr_{fix}"],
        )


def _deviation(case: str, quantity: str, found: Tensor | None, expected: Tensor) -> Deviation:
    tolerance = TOLERANCE_FROM_X0 if quantity.startswith(("x0", "image")) else TOLERANCE
    if found is None or found.shape != expected.shape:
        return Deviation(case, quantity, float("inf"), float("inf"), tolerance)
    absolute = float((found - expected).abs().max())
    return Deviation(case, quantity, absolute, absolute / float(expected.abs().max()), tolerance)


@click.command(help=__doc__)
@click.argument("reference", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(reference: Path) -> None:
    """Compare on all cases of the folder and print the table."""
    deviations = compare_with_reference(reference_network(reference), reference)
    click.echo("| quantity | max absolute error | max relative error | tolerance (relative) | worst case |")
    click.echo("| --- | ---: | ---: | ---: | --- |")
    for worst in worst_of_each(deviations):
        absolute = max(one.absolute for one in deviations if one.quantity == worst.quantity)
        numbers = f"{absolute:.1e} | {worst.relative:.1e} | {worst.tolerance:.0e}"
        click.echo(f"| {worst.quantity} | {numbers} | {worst.case} |")
    sys.exit(0 if all(deviations) else 1)


if __name__ == "__main__":
    main()
