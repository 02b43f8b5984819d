"""The model card of a bundle on the Hub, made of its manifest: what it is, how true it is, how to run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s3diff_runtime.bundle.inspection import facts
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.families import FAMILIES

CARD_NAME = "README.md"


def model_card(manifest: Manifest, repository: str, license: str) -> str:
    """The text of the card, in the Markdown of the Hub.

    Args:
        manifest: of the bundle.
        repository: `owner/name`, for the commands.
        license: the identifier that the Hub knows it by.
    """
    title = FAMILIES[manifest.family].title
    return f"""\
---
library_name: s3diff-export
pipeline_tag: image-to-image
license: {license}
tags: [super-resolution, onnx, {manifest.family}]
---

# {repository}

{title}, one-step diffusion super-resolution, as a bundle of ONNX graphs that `s3diff-export` opens without
torch.

## Run it

    pip install 's3diff-export[cpu,hub]'      # or [gpu,hub]
    s3diff-export upscale photos/ -o upscaled/ --bundle {repository}

```python
from s3diff_runtime import Upscaler

with Upscaler.open("{repository}") as upscale:
    upscale("photo.jpg").image.save("photo-x4.png")
```

`{repository}@REVISION` pins a commit. Every file is compared with its hash in `manifest.json` when it is
fetched.

## What it is

{"".join(_table(("", ""), list(facts(manifest))))}
## How well it was verified

{"".join(_parity(manifest.reports.get("parity")))}{"".join(_bins(manifest.reports.get("bins")))}
## Licence

`{license}`. A bundle holds the weights that it was built from: what their licences ask for, it asks for too.
"""


def _parity(report: Any) -> Iterator[str]:  # noqa: ANN401 - reports are free-form JSON
    """The report that the build or `s3diff-export verify` left."""
    if not isinstance(report, Mapping) or not report.get("quantities"):
        yield "It was not: the bundle has no report of a comparison with PyTorch.\n"
        return
    yield f"Against PyTorch in fp32, the worst of {report.get('cases')} cases; relative errors.\n\n"
    rows = [
        (str(each.get("quantity")), f"{each.get('relative', 0):.1e}", f"{each.get('limit', 0):.1e}")
        for each in report["quantities"]
    ]
    for fix, psnr in report.get("psnr", {}).items():
        rows.append((f"image ({fix})", "identical" if psnr is None else f"{psnr:.1f} dB", ""))
    yield from _table(("quantity", "error", "limit"), rows)


def _bins(report: Any) -> Iterator[str]:  # noqa: ANN401
    """What the nearest bin costs against exact modulation, of merged bundles."""
    if not isinstance(report, Sequence) or not report:
        return
    yield "\nThe nearest bin against exact modulation, on one small picture:\n\n"
    rows = [
        (
            f"{each.get('bins')} ({each.get('count')})",
            f"{each.get('epsilon_relative_mean', 0):.1e}",
            f"{each.get('image_psnr_mean', 0):.1f} dB",
        )
        for each in report
    ]
    yield from _table(("bins", "relative error of ε, mean", "image PSNR, mean"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown; nothing in a cell can leave it or stand for more than its letters."""
    yield f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    for row in rows:
        yield f"| {' | '.join(map(_plain, row))} |\n"


def _plain(text: str) -> str:
    line = " ".join(text.split())
    return "".join(f"&#{ord(letter)};" if letter in "&<>|`*_[]!\\#~" else letter for letter in line)
