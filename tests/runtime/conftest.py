"""What the tests of the runtime share."""

from __future__ import annotations

import pytest

from s3diff_runtime.engines.flavours import FLAVOURS


@pytest.fixture
def only_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` choose as without OpenVINO, for tests that spoil or count what ONNX Runtime does."""
    others = {name: row for name, row in FLAVOURS.items() if name != "openvino"}
    monkeypatch.setattr("s3diff_runtime.engines.choice.FLAVOURS", others)
