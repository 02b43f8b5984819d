"""Encodes prompts, where a bundle holds a text encoder."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.sessions import SessionPool
from s3diff_runtime.errors import BundleError, RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class PromptEncoder:
    """Turns texts into the embeddings that the UNet takes; remembers the last ones."""

    def __init__(self, bundle: Bundle, sessions: SessionPool) -> None:
        self._bundle, self._sessions = bundle, sessions
        self._last: tuple[tuple[str, ...], NDArray[np.float32]] | None = None

    def __call__(self, texts: tuple[str, ...]) -> NDArray[np.float32]:
        """Embeddings float32 `[len(texts), tokens, width]`; texts beyond the encoder's length are cut.

        Raises:
            RequestError: when the package `tokenizers` is not installed.
            BundleError: when the tokenizer or the graph cannot be loaded.
        """
        last = self._last
        if last is None or last[0] != texts:
            tokens = np.array(
                [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))], np.int64
            )
            outputs = self._sessions.get("text_encoder").run({"tokens": tokens})
            last = texts, np.asarray(outputs["prompts"])  # on the host, so that every lane can have it
            self._last = last
        return last[1]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise RequestError("prompts need the package tokenizers: pip install tokenizers") from error
        prompts = self._bundle.manifest.prompts
        path = self._bundle.folder / str(prompts.tokenizer)
        try:
            tokenizer = Tokenizer.from_file(str(path))
            length = len(tokenizer.encode("").ids)
        except Exception as error:  # tokenizers raises bare exceptions
            raise BundleError(f"{path} is no tokenizer ({error}); rebuild the bundle") from error
        if length != prompts.max_length:
            raise BundleError(
                f"{path} pads prompts to {length} tokens, the manifest says {prompts.max_length}; "
                "rebuild the bundle"
            )
        return tokenizer
