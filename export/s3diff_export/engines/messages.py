"""Collects what TensorRT says: its calls give None or False, and the reason only to its logger."""

from __future__ import annotations

import re
from collections import deque
from functools import cache
from typing import Any

_KEPT = 50
_LONGEST = 700  # characters of a reason
_NOISE = re.compile(
    r"catchCudaError|--- (?:Begin|End) node|While parsing node|logger passed into|unused or used only at"
)
"""A missing driver, which TensorRT-RTX does without; frames around the message that matters; habits."""


class Messages:
    """The warnings and errors since the last `clear`, oldest first."""

    def __init__(self) -> None:
        """Starts empty."""
        self._texts: deque[tuple[bool, str]] = deque(maxlen=_KEPT)

    def add(self, severe: bool, text: str) -> None:
        """Keep a message, unless it is noise."""
        if not _NOISE.search(text):
            self._texts.append((severe, " ".join(text.split())))

    def clear(self) -> None:
        """Forget all."""
        self._texts.clear()

    def reason(self) -> str:
        """The errors in one line, each once; the warnings where there are no errors."""
        severe = [text for is_severe, text in self._texts if is_severe]
        return join_reasons(severe or [text for _, text in self._texts])


def join_reasons(texts: list[str]) -> str:
    """Different texts in one line of bounded length, without noise."""
    lines = (" ".join(line.split()) for text in texts for line in text.splitlines())
    kept = dict.fromkeys(line for line in lines if line and not _NOISE.search(line))
    return " | ".join(kept)[:_LONGEST] or "TensorRT gave no reason"


@cache
def collector(module: Any) -> tuple[Any, Messages]:  # noqa: ANN401 - tensorrt has no annotations
    """The logger of a TensorRT module and what it collects: one a process.

    TensorRT keeps the first logger that it is given and ignores later ones.
    """
    messages = Messages()
    severity = module.ILogger.Severity
    kinds = {severity.INTERNAL_ERROR: True, severity.ERROR: True, severity.WARNING: False}

    class Collector(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:  # noqa: ANN401
            if severity in kinds:
                messages.add(kinds[severity], text)

    return Collector(), messages
