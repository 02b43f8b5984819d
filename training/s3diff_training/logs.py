"""What the room's commands say while they work: this project's log on standard error, and no other noise."""

from __future__ import annotations

import logging

import click
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import disable_progress_bars
from transformers.utils import logging as transformers_logging

_ROOM = logging.getLogger("s3diff_training")


class _Echo(logging.Handler):
    """Writes to the standard error of the moment, which a progress bar or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + record.getMessage(), err=True)


def set_up_logging() -> None:
    """Send the room's records to standard error; keep the libraries' hints and progress bars out of it."""
    if not any(isinstance(handler, _Echo) for handler in _ROOM.handlers):
        _ROOM.addHandler(_Echo())
    _ROOM.setLevel(logging.INFO)
    disable_progress_bars()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
