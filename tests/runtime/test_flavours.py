"""The table of flavours: everything follows from its rows, and nobody else tells flavours apart by name."""

from __future__ import annotations

import ast
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.engines.flavours import COMPILED_FLAVOURS, FLAVOURS

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = REPOSITORY / "runtime" / "s3diff_runtime" / "engines" / "flavours.py"


@pytest.mark.parametrize("name", FLAVOURS)
def test_what_a_row_names_is_there(name: str) -> None:
    row = FLAVOURS[name]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert row.name == name
    assert row.extra in project["optional-dependencies"]
    assert callable(importlib.import_module(row.opened_by).open_engine)
    assert row.devices


def test_the_slowest_serves_every_device() -> None:
    """So that `auto` always finds something, or says why that did not do."""
    assert {device for row in FLAVOURS.values() for device in row.devices} == {
        *[*FLAVOURS.values()][-1].devices
    }


def test_manifests_take_exactly_the_compiled_flavours() -> None:
    identity = Manifest.model_json_schema()["$defs"]["EngineIdentity"]
    assert tuple(identity["properties"]["flavour"]["enum"]) == COMPILED_FLAVOURS


@pytest.mark.parametrize("room", ["runtime", "export"])
def test_nobody_else_tells_flavours_apart(room: str) -> None:
    files = [path for path in sorted((REPOSITORY / room).rglob("*.py")) if path != TABLE]
    found = [f"{path.name}:{line}" for path in files for line in compared_names(path)]
    assert found == [], "ask the row of FLAVOURS"


def compared_names(path: Path) -> Iterator[int]:
    """Lines that compare something with the name of a flavour."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            constants = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
            if constants & set(FLAVOURS):
                yield node.lineno
