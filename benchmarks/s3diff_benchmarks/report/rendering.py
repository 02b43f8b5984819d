"""Reports and their index as Markdown and as pages, from the templates beside this file.

Markdown is readable as text, and in a repository's web view with its plots. A page opens from disk: it needs
no network and no other file, and a content security policy lets only its own script run. Neither trusts any
name: every text that a template shows is escaped, unless it is `Verbatim`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from s3diff_benchmarks.machine import Machine
from s3diff_benchmarks.report.figures import rounded, shown_table
from s3diff_benchmarks.report.model import BundleFacts, figure_in

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#&!$~])")


class Verbatim(str):
    """Markdown that is shown as it is."""


def render(template: str, **shown: object) -> str:
    """Fill `templates/TEMPLATE.jinja` with what it shows; the page of a report needs `embedded` too."""
    environment = _HTML if template.endswith(".html") else _MARKDOWN
    return environment.get_template(f"{template}.jinja").render(shown) + "\n"


def fenced(text: str) -> Verbatim:
    """A block of code; its fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Verbatim(f"{fence}\n{text}\n{fence}")


def _escaped(text: object) -> str:
    """One line of plain text, whatever it holds."""
    return text if isinstance(text, Verbatim) else _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _moment(created: str) -> str:
    """An ISO time in UTC as people read it, to the minute."""
    return f"{created[:16].replace('T', ' ')} UTC"


def _facts(machine: Machine) -> Iterator[tuple[str, str]]:
    """What a reader must know of a machine, as names and values."""
    yield "processor", f"{machine.processor}; cores for this process: {machine.cores}"
    yield "memory", f"{rounded(machine.memory_mib / 1024)} GiB"
    yield "system", f"{machine.system}, Python {machine.python}"
    yield "load before", f"{machine.load} programs running"
    for gpu in machine.gpus:
        limit = "" if gpu.power_limit_w is None else f", {gpu.power_limit_w:.0f} W"
        clocks = f"{gpu.sm_clock_mhz} MHz, memory {gpu.memory_clock_mhz} MHz at the start"
        drivers = f"driver {gpu.driver}, CUDA {gpu.cuda}"
        yield "GPU", f"{gpu.name}, {gpu.memory_mib / 1024:.0f} GiB, {clocks}{limit}, {drivers}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())


def _described(bundle: BundleFacts) -> str:
    """One line on a bundle."""
    bins = f", {bundle.bins} bins" if bundle.bins else ""
    engines = f", engines {', '.join(bundle.engines)}" if bundle.engines else ""
    made = f"made by {bundle.producer}, manifest {bundle.manifest_sha256[:16]}"
    return f"{bundle.name}: {bundle.lora_mode}, {bundle.precision}{bins}{engines}; {made}"


def embedded(folder: Path, kind: str, name: str) -> str:
    """An image in `plots` or `pictures` of a report's folder, as a lossless data URL."""
    file = io.BytesIO()
    with Image.open(folder / kind / f"{name}.png") as image:
        image.save(file, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _environment(**options: Any) -> Environment:  # noqa: ANN401 - of jinja2
    made = Environment(
        loader=PackageLoader("s3diff_benchmarks.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    made.filters |= {
        "as_json": partial(json.dumps, indent=2, ensure_ascii=False),
        "described": _described,
        "facts": _facts,
        "fenced": fenced,
        "figure": figure_in,
        "moment": _moment,
        "rounded": rounded,
        "shown": shown_table,
    }
    return made


_MARKDOWN = _environment(autoescape=False, finalize=_escaped)
_HTML = _environment(autoescape=True)
_SCRIPT = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
_HTML.globals |= {
    "script": _SCRIPT,
    "script_hash": f"sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}",
}
