"""One trained module with its optimiser and the moving average of its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from s3diff_runtime.errors import CheckpointError, JobError


@dataclass(frozen=True)
class TrainableModule:
    """A module to train: those of its parameters that require gradients."""

    module: nn.Module
    averaged: bool = True
    """Keep a moving average of the weights, when the loop's `ema_decay` is not 0."""


class OptimisedModule:
    """Runs AdamW on a module and keeps what a checkpoint needs of it.

    AdamW's own defaults are the released training's (FACTS: β 0.9/0.999, weight decay 1e-2).
    """

    def __init__(
        self,
        name: str,
        trainable: TrainableModule,
        accelerator: Accelerator,
        ema_decay: float,
        channels_last: bool,
    ) -> None:
        self.name, self.module = name, trainable.module
        self._accelerator, self._decay = accelerator, ema_decay if trainable.averaged else 0.0
        self.module.to(accelerator.device)
        if channels_last:
            nn.utils.convert_conv2d_weight_memory_format(self.module, torch.channels_last)
        self._named = {key: value for key, value in self.module.named_parameters() if value.requires_grad}
        if not self._named:
            raise JobError(f"{name} has no parameter that requires gradients; nothing to train")
        self.parameters: list[Tensor] = list(self._named.values())
        for value in self.module.state_dict().values():
            value.copy_(broadcast(value))
        self._optimizer = torch.optim.AdamW(self.parameters, fused=True)
        self._average = [p.detach().clone() for p in self.parameters] if self._decay else []

    def step(self, learning_rate: float, clip: float) -> None:
        """Average the gradients over all processes, clip their norm, update the weights, drop the gradients.

        One all-reduce of the flattened gradients takes the place of DistributedDataParallel: the loss may
        then be any function of any modules, with several forward passes and parameters that some of them
        leave unused. Which parameters get a gradient must not differ between processes.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self._accelerator.num_processes > 1:
            flat = self._accelerator.reduce(torch.cat([g.reshape(-1) for g in gradients]), reduction="mean")
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        if clip:
            nn.utils.clip_grad_norm_(self.parameters, clip)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Move the average towards the weights after loop step `step` (from 1).

        The decay is min(ema_decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage,
        so that short runs do not average in the initial weights.
        """
        if self._average:
            decay = min(self._decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self._average, self.parameters, step)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """For a while: evaluation mode, and the averaged weights (if any) in place of the trained ones."""
        modes = [(module, module.training) for module in self.module.modules()]
        kept = [p.detach().clone() for p in self.parameters] if self._average else []
        self._overwrite(self._average)
        self.module.eval()
        try:
            yield
        finally:
            self._overwrite(kept)
            for module, training in modes:
                module.training = training

    @contextmanager
    def only_trained(self, others: list["OptimisedModule"]) -> Iterator[None]:
        """Gradients for this module alone: the parameters of `others` do not require them for a while."""
        frozen = [p for other in others for p in other.parameters if other is not self]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def state(self) -> dict[str, Any]:
        """Trained weights, buffers (spectral norms have some), optimiser and average."""
        return {
            "weights": {key: value.detach() for key, value in self._named.items()},
            "buffers": dict(self.module.named_buffers()),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Read what `state` returned.

        Raises:
            CheckpointError: when it belongs to another module.
        """
        if state["weights"].keys() != self._named.keys() or len(state["average"]) != len(self._average):
            raise CheckpointError(f"the checkpoint's weights of {self.name} are another network's")
        own = self._named | dict(self.module.named_buffers())
        with torch.no_grad():
            for key, value in (state["weights"] | state["buffers"]).items():
                own[key].copy_(value)
            for mine, value in zip(self._average, state["average"], strict=True):
                mine.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def _overwrite(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=False):
            parameter.copy_(value)
