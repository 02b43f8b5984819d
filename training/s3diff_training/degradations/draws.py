"""Random draws that come from one explicit generator, so that a seed reproduces a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

Range = tuple[float, float]


def uniform(generator: Generator, count: int, interval: Range) -> Tensor:
    """Draw float32 [count] uniformly from `interval`, on the generator's device."""
    low, high = interval
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def chance(generator: Generator, count: int, probability: float) -> Tensor:
    """Draw bool [count], each true with `probability`."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


def choice(generator: Generator, count: int, weights: Sequence[float]) -> Tensor:
    """Draw int64 [count], index i with a probability in proportion to `weights[i]`."""
    probabilities = torch.tensor(weights, dtype=torch.float32, device=generator.device)
    return torch.multinomial(probabilities, count, replacement=True, generator=generator)
