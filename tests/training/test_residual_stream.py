"""What keeps the residual stream of a network in training small."""

from __future__ import annotations

import math

import pytest
import torch
from tests.training.small import fresh
from torch import Tensor, nn

from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.model import S3Diff
from s3diff_training.train.residual_stream import ResidualStream

PLAIN = NetworkConfig(rank_unet=0, rank_vae=0, guidance=1.0)


def passed(network: S3Diff) -> Tensor:
    prompt = network.encode_prompts([PLAIN.positive_prompt])
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    return network(image, torch.zeros(1, 2), prompt).x0


def grow(unet: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "sampler" in name:
                parameter.mul_(factor)


def test_a_small_stream_costs_nothing_and_a_large_one_its_logarithm(tiny_base: BaseModel) -> None:
    base = fresh(tiny_base)
    network = S3Diff(base, PLAIN).train()
    stream = ResidualStream((base.vae, base.unet))
    passed(network)
    small = stream.excess().item()
    grow(base.unet, 30.0)
    passed(network)
    large = stream.excess().item()
    grow(base.unet, 2.0)
    passed(network)
    assert small == pytest.approx(0, abs=0.1)
    assert large > 1
    # Twice as much is ln 4 more for every sampler that was passed: at most six, and none by the VAE's blocks.
    assert 0.1 < stream.excess().item() - large < 6 * math.log(4)


def test_its_gradient_shrinks_what_is_too_large(tiny_base: BaseModel) -> None:
    base = fresh(tiny_base)
    grow(base.unet, 30.0)
    network = S3Diff(base, PLAIN).train().requires_grad_(True)
    stream = ResidualStream((base.unet,))
    found = []
    optimizer = torch.optim.SGD(base.unet.parameters(), lr=0.0)
    for _ in range(3):
        passed(network)
        loss = stream.excess()
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in base.unet.parameters():
                if parameter.grad is not None and parameter.grad.norm() > 0:
                    parameter -= 0.02 * parameter.norm() * parameter.grad / parameter.grad.norm()
    assert found[2] < found[1] < found[0]


def test_nothing_is_kept_of_passes_without_gradients(tiny_base: BaseModel) -> None:
    base = fresh(tiny_base)
    network = S3Diff(base, PLAIN)
    stream = ResidualStream((base.vae, base.unet))
    network.train()
    passed(network)
    alone = stream.excess().item()
    passed(network)
    network.eval()
    with torch.no_grad():
        passed(network)
    assert stream.excess().item() == pytest.approx(alone)
