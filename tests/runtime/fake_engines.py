"""Adds engines of the kind that `fake_tensorrt` runs to a fake bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.runtime.fake_bundle import MULTIPLE, file_records
from tests.runtime.fake_tensorrt import PLAN_MAGIC, VERSION

from s3diff_runtime.bundle.engine_records import (
    EngineIdentity,
    EngineSet,
    EngineSidecar,
    Profile,
    Range,
)
from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import Manifest, Stage
from s3diff_runtime.engines.flavours import CompiledFlavour

LEAST = MULTIPLE // 4
"""Low-resolution pixels that the fake network pads to a multiple of."""
WIDE = Profile(
    batch=Range(min=1, opt=2, max=6),
    height=Range(min=LEAST, opt=32, max=96),
    width=Range(min=LEAST, opt=32, max=96),
)


def add_engines(
    folder: Path, flavour: CompiledFlavour = "tensorrt", profile: Profile = WIDE, **identity: object
) -> EngineSet:
    """Build engines for every graph of a fake bundle, and name them in its manifest."""
    manifest = Manifest.read(folder)
    described: dict[str, Any] = {
        "flavour": flavour,
        "version": VERSION,
        "targets": ("8.9",),
        "gpu": "Fake GPU",
        "precision": "fp32",
        "profile": profile,
        "options": {},
    }
    built = EngineIdentity.model_validate(described | identity)
    name = f"{flavour}-{len(manifest.engines)}"
    graphs = {
        stage: {
            key: _build(folder, f"engines/{name}/{key}/{stage}.engine", stage, key, manifest, built)
            for key in spec.graphs
        }
        for stage, spec in manifest.stages.items()
    }
    engines = EngineSet(name=name, identity=built, graphs=graphs)
    updated = {"engines": (*manifest.engines, engines), "files": dict(file_records(folder))}
    manifest.model_copy(update=updated).write(folder)
    return engines


def _build(
    folder: Path, path: str, stage: str, key: str, manifest: Manifest, identity: EngineIdentity
) -> str:
    spec = manifest.stages[stage]
    shapes = _shapes(spec, identity.profile)
    exact = [
        _shapes(spec, identity.profile.model_copy(update={"batch": Range(min=batch, opt=batch, max=batch)}))
        for batch in identity.exact_batches
    ]
    tuned = [{name: [sizes[1]] * 3 for name, sizes in each.items()} for each in exact]
    graph = (folder / spec.graphs[key]).read_bytes()
    plan = PLAN_MAGIC + json.dumps([*tuned, shapes]).encode() + b"\n" + graph
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(plan)
    described = {
        "identity": identity,
        "stage": stage,
        "graph": key,
        "onnx": {spec.graphs[key]: sha256(folder / spec.graphs[key])},
        "inputs": spec.inputs,
        "outputs": spec.outputs,
        "shapes": shapes,
        "exact": [{name: sizes[0] for name, sizes in each.items()} for each in tuned],
        "sha256": hashlib.sha256(plan).hexdigest(),
        "size": len(plan),
        "built": "2025-01-01T00:00:00+00:00",
        "seconds": 1.0,
    }
    sidecar = EngineSidecar.model_validate(described)
    target.with_suffix(".json").write_text(sidecar.model_dump_json())
    return path


def _shapes(spec: Stage, profile: Profile) -> dict[str, list[list[int]]]:
    """Least, tuned and largest shape of every input of a fake stage."""
    height, width = profile.height, profile.width
    sides: dict[str, list[int]] = {
        "N": [profile.batch.min, profile.batch.opt, profile.batch.max],
        "P": [1, 2, 2],
        "H": [height.min - LEAST + 1, height.opt, height.max],
        "W": [width.min - LEAST + 1, width.opt, width.max],
        "h": [height.min, height.opt, height.max],
        "w": [width.min, width.opt, width.max],
    }
    sides["hr_height"] = [4 * side for side in sides["h"]]
    sides["hr_width"] = [4 * side for side in sides["w"]]
    return {
        tensor.name: [
            [axis if isinstance(axis, int) else sides[axis][step] for axis in tensor.shape]
            for step in range(3)
        ]
        for tensor in spec.inputs
    }
