"""Encodes prompts, where a bundle holds a text encoder."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.sessions import SessionPool
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.standing import Standing
from s3diff_runtime.errors import BundleError, RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_KEPT = 8
"""Sets of texts."""


class PromptEncoder:
    """Turns texts into the embeddings that the UNet takes; keeps the last few. Safe from several threads."""

    def __init__(self, bundle: Bundle, sessions: SessionPool) -> None:
        self._bundle, self._sessions = bundle, sessions
        self._embedded = Standing[NDArray[np.float32]](_KEPT)

    def __call__(self, texts: tuple[str, ...], clock: Clock) -> NDArray[np.float32]:
        """Embeddings float32 `[len(texts), tokens, width]`; texts beyond the encoder's length are cut.

        Takes a lane of the engine, so nobody who holds one may ask. `clock` counts the time of the stage.

        Raises:
            RequestError: when the package `tokenizers` is not installed.
            BundleError: when the tokenizer or the graph cannot be loaded.
        """
        return self._embedded.get(texts, partial(self._encode, texts, clock))

    def _encode(self, texts: tuple[str, ...], clock: Clock) -> NDArray[np.float32]:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        session = self._sessions.get("text_encoder")
        with self._sessions.engine.lane(clock) as lane, lane.timed("text_encoder"):
            outputs = session.run({"tokens": lane.upload("tokens", np.array(rows, np.int64))})
            return np.array(outputs["prompts"])  # on the host and no longer the lane's: for every lane

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise RequestError(
                "prompts need the package tokenizers: pip install 's3diff-export[prompts]'"
            ) from error
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
