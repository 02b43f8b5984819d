"""Write the names that the Python bindings of TensorRT have, tests/export/tensorrt_names.json.

    python tests/export/tensorrt_names.py

The tests drive our calls of TensorRT through these names, where TensorRT itself is not installed. The
wheels of the bindings are small and install everywhere, but load libraries of gigabytes. So each is
downloaded with pip, given empty libraries of the names that it wants, imported in a process of its own, and
looked at; nothing of it is called. Needs Linux, pip, a C compiler and readelf; TensorRT-RTX must be
installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from s3diff_runtime.engines.flavours import FLAVOURS
from s3diff_runtime.files import write_text

TARGET = Path(__file__).with_name("tensorrt_names.json")
REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = [
    *sorted((REPOSITORY / "runtime/s3diff_runtime/engines/tensorrt").glob("*.py")),
    *sorted((REPOSITORY / "export/s3diff_export/engines").glob("*.py")),
]
"""What calls TensorRT."""
WHEELS = {  # the oldest and the newest of each generation
    "10.12.0.36": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.0.0.114": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
RTX = FLAVOURS["tensorrt-rtx"].package
LEAN = FLAVOURS["tensorrt-lean"].package
LEAN_WHEELS = ("10.13.2.6", "11.4.0.106")
CLASSES = (
    "Builder",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "TensorIOMode",
)
_LAYERS = re.compile("add_(?!optimization_profile)")  # of networks: we parse, and add no layers ourselves
_PROBE = f"""
import importlib, json, re, sys
module = importlib.import_module(sys.argv[1])

def described(thing, name):
    member = getattr(thing, name)
    if isinstance(member, property):
        return "property" if member.fset else "read-only property"
    lines = (member.__doc__ or "").splitlines()
    overloads = [line.strip() for line in lines if re.match(rf"(\\d+\\. )?{{name}}\\(self", line.strip())]
    return " or ".join(re.sub(r"^\\d+\\. |[a-z_0-9]+\\.(?=[A-Za-z])", "", line) for line in overloads)

public = lambda thing: {{name: described(thing, name) for name in dir(thing) if not name.startswith("_")}}
print(json.dumps({{
    "version": module.__version__,
    "classes": {{name: public(getattr(module, name)) for name in {CLASSES} if hasattr(module, name)}},
    "enums": {{
        name: {{key: int(value) for key, value in getattr(module, name).__members__.items()}}
        for name in {ENUMS} if hasattr(module, name)
    }},
}}))
"""


def looked_at(module: str, **environment: str) -> dict[str, Any]:
    """The names of a module, which is imported in a process of its own with some environment variables."""
    command = [sys.executable, "-c", _PROBE, module]
    found = subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def unpacked(package: str, version: str, folder: Path) -> Path:
    """Download a wheel of bindings and unpack it; the folder to import from."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, f"{package}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    return folder / "wheel"


def stub_libraries(binding: Path, folder: Path) -> Path:
    """Make the libraries in `folder` that a binding loads, with empty functions of the names it calls."""
    described = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--dyn-syms", binding], check=True, capture_output=True, text=True
    ).stdout
    functions = sorted(set(re.findall(r" UND (\w*(?:INTERNAL|Plugin\w*|NvOnnxParserVersion))\b", described)))
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for library in re.findall(r"\[(libnv\S+)\]", described):
        output = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library)]
        subprocess.run(["cc", *output, str(source)], check=True)
    return folder


def names() -> dict[str, Any]:
    """The content of the file: of every class what all versions have and what only some have; enumerators.

    Signatures are those of the members that our code names, as pybind11 documents them, each with the
    bindings that have it so.
    """
    bindings: dict[str, dict[str, Any]] = {}
    for version, package in WHEELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = unpacked(package, version, Path(scratch))
            libraries = stub_libraries(folder / "tensorrt_bindings" / "tensorrt.so", Path(scratch))
            bindings[f"tensorrt {version}"] = looked_at(
                "tensorrt_bindings", PYTHONPATH=str(folder), LD_LIBRARY_PATH=str(libraries)
            )
    rtx = looked_at(RTX)
    bindings[f"{RTX} {rtx['version']}"] = rtx
    for version in LEAN_WHEELS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = unpacked("tensorrt-lean-cu13-bindings", version, Path(scratch))
            binding = next(folder.glob("tensorrt_lean_bindings/tensorrt_lean*.so"))
            libraries = stub_libraries(binding, Path(scratch))
            bindings[f"{LEAN} {version}"] = looked_at(
                "tensorrt_lean_bindings", PYTHONPATH=str(folder), LD_LIBRARY_PATH=str(libraries)
            )
    return {
        "bindings": list(bindings),
        "classes": {name: _by_version(name, bindings) for name in CLASSES},
        "signatures": {name: _signatures(name, bindings) for name in CLASSES},
        "enums": {
            name: {
                which: binding["enums"][name]
                for which, binding in bindings.items()
                if name in binding["enums"]
            }
            for name in ENUMS
        },
    }


def _signatures(name: str, bindings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    used = set(re.findall(r"\.([a-z]\w+)", "".join(path.read_text() for path in SOURCES)))
    found: dict[str, dict[str, list[str]]] = {}
    for which, binding in bindings.items():
        for member, signature in binding["classes"].get(name, {}).items():
            if member in used:
                found.setdefault(member, {}).setdefault(signature, []).append(which)
    return found


def _by_version(name: str, bindings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    members = {
        which: {member for member in binding["classes"][name] if not _LAYERS.match(member)}
        for which, binding in bindings.items()
        if name in binding["classes"]
    }
    common = set.intersection(*members.values())
    some = sorted(set.union(*members.values()) - common)
    return {
        "in": list(members),
        "always": sorted(common),
        "sometimes": {member: [which for which in members if member in members[which]] for member in some},
    }


@click.command(help=__doc__)
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), default=TARGET)
def main(path: Path) -> None:
    """Write the file and print where it is."""
    write_text(path, json.dumps(names(), indent=1) + "\n")
    click.echo(path)


if __name__ == "__main__":
    main()
