"""Collects what TensorRT says: its calls give None or False, and the reason only to its logger."""

import re
import threading
from collections import deque
from functools import cache
from typing import Any

_KEPT = 50
_LONGEST = 700  # characters of a reason
_NOISE = re.compile(
    r"catchCudaError|--- (?:Begin|End) node|While parsing node|logger passed into|unused or used only at"
)
"""A missing driver, which TensorRT-RTX builds without; frames around the message that matters; habits."""
_ERROR, _WARNING, _CHATTER = 2, 1, 0


class Messages(threading.local):
    """What was said in the calling thread since its last `clear`: another's failure explains nothing here."""

    def __init__(self) -> None:
        self._texts: deque[tuple[int, str]] = deque(maxlen=_KEPT)

    def add(self, weight: int, text: str) -> None:
        """Keep a message; the heavier ones hide the others."""
        self._texts.append((_CHATTER if _NOISE.search(text) else weight, " ".join(text.split())))

    def clear(self) -> None:
        """Forget all of this thread's."""
        self._texts.clear()

    def reason(self) -> str:
        """The errors in one line, each once; where there are none the warnings, or what else there is."""
        heaviest = max((weight for weight, _ in self._texts), default=_CHATTER)
        return _in_one_line([text for weight, text in self._texts if weight == heaviest])


def join_reasons(texts: list[str]) -> str:
    """Different texts, of several lines each, in one line of bounded length, without noise."""
    return _in_one_line([line for text in texts for line in text.splitlines() if not _NOISE.search(line)])


def _in_one_line(texts: list[str]) -> str:
    lines = dict.fromkeys(" ".join(text.split()) for text in texts if text.strip())
    return " | ".join(lines)[:_LONGEST] or "TensorRT gave no reason"


@cache
def collector(module: Any) -> tuple[Any, Messages]:  # noqa: ANN401 - tensorrt has no annotations
    """The logger of a TensorRT module and what it collects: one a process.

    TensorRT keeps the first logger that it is given and ignores later ones.
    """
    messages = Messages()
    severity = module.ILogger.Severity
    weights = {severity.INTERNAL_ERROR: _ERROR, severity.ERROR: _ERROR, severity.WARNING: _WARNING}

    class Collector(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:  # noqa: ANN401
            if severity in weights:
                messages.add(weights[severity], text)

    return Collector(), messages
