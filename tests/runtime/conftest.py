"""What the tests of the runtime share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from s3diff_runtime.engines.flavours import FLAVOURS


@pytest.fixture
def only_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` choose as without OpenVINO, for tests that spoil or count what ONNX Runtime does."""
    others = {name: row for name, row in FLAVOURS.items() if name != "openvino"}
    monkeypatch.setattr("s3diff_runtime.engines.choice.FLAVOURS", others)


@pytest.fixture
def leave_home(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the user one without a home, as containers have."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    def leave() -> None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", home)

    return leave
