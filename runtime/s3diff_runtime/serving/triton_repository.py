"""`s3diff-export triton-repository`: a bundle as a model that NVIDIA Triton Inference Server loads."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from s3diff_runtime.bundle.integrity import opened_inside
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.records import MANIFEST_NAME
from s3diff_runtime.engines.choice import ENGINES
from s3diff_runtime.engines.devices import Device, listed_devices
from s3diff_runtime.files import replacing, require_replaceable
from s3diff_runtime.options import Options, argument, group, option
from s3diff_runtime.serving.served_model import ServedModel
from s3diff_runtime.serving.triton_requests import BUNDLE, INPUTS, OUTPUTS, Form
from s3diff_runtime.upscale_options import USUAL_TILE

CONFIGURATION = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DIMENSIONS: Mapping[Form, str] = {"image": "[ -1 ]", "pixels": "[ -1, -1, 3 ]"}
"""Of inputs and outputs, behind the batch's."""
_TEMPLATE = """# Written by s3diff-export triton-repository; docs/triton.md says what can be changed.
backend: "python"
max_batch_size: {batch}
input [{inputs}]
output [{outputs}]
instance_group [{instances}]
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
  default_queue_policy {{
    max_queue_size: {queue}
    timeout_action: REJECT
    default_timeout_microseconds: {timeout}
    allow_timeout_override: true
  }}
}}
model_warmup [{warmups}]
{parameters}"""
_MODEL = '''"""The model that Triton's Python backend runs; it needs s3diff-export in the backend's Python."""

from s3diff_runtime.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class TritonRepositoryRequest(Options):
    """What `s3diff-export triton-repository` can be asked for."""

    bundle: Path = argument("Folder of the bundle.")
    output: Path = option(help="The repository; other models in it stay.", flags=("-o", "--output"))
    name: str = option("s3diff", "Of the model, as clients call it.")
    device: str = option(
        "cpu", "cpu; all for an instance on every GPU that the server finds; some with cuda:0,cuda:1."
    )
    served: ServedModel = group(ServedModel)
    queue: int = option(16, "Requests that may wait; more are refused at once, with 503.", least=1)
    timeout: float = option(60, "Seconds that a request may wait before it is refused.", above=0, most=86_400)
    delay: float = option(
        5, "Milliseconds that a request waits for others to share its batch.", least=0, most=10_000
    )
    force: bool = option(False, "Replace a model of that name, once the new one is whole.")

    def problems(self) -> Iterator[str]:
        """A name that Triton or a file system takes badly, or an engine that does not exist."""
        if not _NAME.fullmatch(self.name):
            yield f"name is {self.name!r}, expected letters, digits, and . _ - after the first"
        if self.served.engine not in ("auto", *ENGINES):
            yield f"unknown engine {self.served.engine!r}; expected auto, {', '.join(ENGINES)}"


def write_repository(request: TritonRepositoryRequest) -> None:
    """Write BUNDLE as a model into a repository of NVIDIA Triton Inference Server.

    \b
      s3diff-export triton-repository s3diff.bundle -o models --device all
      tritonserver --model-repository models

    The model holds a copy of the bundle. The server's Python needs s3diff-export installed.

    Raises:
        RequestError: for a request that cannot be met, or a model that exists.
        BundleError: for a damaged bundle.
        JobError: when the disk refuses.
    """
    target = request.output / request.name
    require_replaceable(target, request.force, CONFIGURATION, "model of Triton")
    instances = list(_instances(request.device))
    manifest = Manifest.read(request.bundle)
    with replacing(target) as folder:
        version = folder / "1"
        _copy_bundle(request.bundle, manifest, version / BUNDLE)
        (version / "model.py").write_text(_MODEL, encoding="utf-8")
        (folder / CONFIGURATION).write_text(_configuration(request, manifest, instances), encoding="utf-8")
    click.echo(target)


def _copy_bundle(source: Path, manifest: Manifest, target: Path) -> None:
    """Copy the files that a manifest names, and compare the hash of every copy."""
    root = source.resolve()
    for name in (MANIFEST_NAME, *manifest.files):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with opened_inside(root, name) as file, (target / name).open("wb") as copy:
            shutil.copyfileobj(file, copy)
    Manifest.read(target, check="hashes")


def _configuration(request: TritonRepositoryRequest, manifest: Manifest, instances: Iterable[str]) -> str:
    """The text of `config.pbtxt`, in protobuf's text format (Triton's `model_config.proto`)."""
    batch = request.served.options.batch
    inputs = [
        f'name: "{INPUTS[form]}" data_type: TYPE_UINT8 dims: {dims} optional: true allow_ragged_batch: true'
        for form, dims in _DIMENSIONS.items()
    ]
    outputs = [
        *(
            f'name: "{OUTPUTS[form]}" data_type: TYPE_UINT8 dims: {dims}'
            for form, dims in _DIMENSIONS.items()
        ),
        *(f'name: "{axis}" data_type: TYPE_FP32 dims: [ 1 ]' for axis in manifest.degradation_axes),
    ]
    return _TEMPLATE.format(
        batch=batch,
        inputs=_listed(inputs),
        outputs=_listed(outputs),
        instances=_listed(instances),
        delay=round(request.delay * 1e3),
        queue=request.queue,
        timeout=round(request.timeout * 1e6),
        warmups=_listed(_warmups(manifest, batch)),
        parameters="".join(_parameters(request.served)),
    )


def _listed(parts: Iterable[str]) -> str:
    return ",".join(f"\n  {{ {part} }}" for part in parts) + "\n"


def _instances(names: str) -> Iterator[str]:
    """One instance a device; for `all` one on each GPU of the server, which need not be this machine."""
    if names == "all":
        yield "count: 1 kind: KIND_GPU"
        return
    for device in map(Device.parse, listed_devices(names)):
        gpus = f"KIND_GPU gpus: [ {device.number} ]" if device.kind == "cuda" else "KIND_CPU"
        yield f"count: 1 kind: {gpus}"


def _warmups(manifest: Manifest, batch: int) -> Iterator[str]:
    """A picture of the size that engines are tuned for, alone and in a full batch."""
    sides = [USUAL_TILE, USUAL_TILE]
    if manifest.engines:
        profile = manifest.engines[0].identity.profile
        sides = [profile.height.opt, profile.width.opt]
    noise = f"data_type: TYPE_UINT8 dims: {[*sides, 3]} random_data: true"
    for size in sorted({1, batch}):
        pixels = f'inputs {{ key: "{INPUTS["pixels"]}" value {{ {noise} }} }}'
        yield f'name: "batch of {size}" batch_size: {size} {pixels}'


def _parameters(served: ServedModel) -> Iterator[str]:
    """What was asked for besides Triton's own settings, by the names of the options."""
    given: Mapping[str, object] = {
        **{name: getattr(served, name) for name in served.given - {"options"}},
        **{name: getattr(served.options, name) for name in served.options.given},
    }
    for name, value in sorted(given.items()):
        yield f'parameters {{ key: "{name}" value {{ string_value: {json.dumps(str(value))} }} }}\n'
