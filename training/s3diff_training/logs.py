"""What the room's code says while it works: this project's log on standard error, and no other noise."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

_ROOM = logging.getLogger("s3diff_training")


class _Echo(logging.Handler):
    """Writes to the standard error of the moment, which a progress bar or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + record.getMessage(), err=True)


def set_up_logging() -> None:
    """Send the room's records to standard error."""
    if not any(isinstance(handler, _Echo) for handler in _ROOM.handlers):
        _ROOM.addHandler(_Echo())
    _ROOM.setLevel(logging.INFO)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the hints and bars of diffusers and transformers off the terminal; decorates what loads or saves.

    Their errors are still shown, and so are the bars of a download from the hub, which may take an hour.
    """
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    hub_has_bars = not are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    if hub_has_bars:
        enable_progress_bars()  # transformers turns them off with its own
    try:
        yield
    finally:
        for library, (verbosity, has_bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if has_bars:
                library.enable_progress_bar()
        if not hub_has_bars:
            disable_progress_bars()
