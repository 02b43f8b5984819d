"""From a degradation to the matrices C that turn the LoRA updates (paper eq. 2 to 4)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s3diff_training.network.config import ModulationKind

_DEGRADATION_WIDTH = 256
_BLOCK_WIDTH = 64


class Modulation(NamedTuple):
    """The matrices of one batch; None where a network has no LoRA or its LoRA is not modulated."""

    vae: Tensor | None
    """`[N, blocks, r, r]` float32 for the VAE."""
    unet: Tensor | None
    """`[N, blocks, r, r]` float32 for the UNet."""

    def repeat(self, times: int) -> "Modulation":
        """The same matrices for a batch that holds every image `times` times, one after the other."""
        return Modulation(*(None if c is None else c.repeat(times, 1, 1, 1) for c in self))


class FourierEmbedding(nn.Module):
    """Eq. 2: each degradation through sine and cosine of fixed random frequencies.

    Args:
        features: number m of frequencies; drawn standard normal, kept in the checkpoint, not trained.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(features))
        self.frequencies: Tensor

    def forward(self, degradation: Tensor) -> Tensor:
        """`[N, 2]` in [0, 1] to `[N, 4 m]`: sines and cosines of the first axis, then of the second."""
        phase = 2 * math.pi * degradation[..., None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1)


class ModulationHead(nn.Module):
    """Eq. 4 for one network: a shared MLP from (degradation, block) to C.

    A new head gives C near the identity, so that training starts as plain LoRA.

    Args:
        blocks: number of blocks.
        rank: r.
        features: m of the Fourier embedding.
        per_block: False drops the block embeddings: one C for all blocks (Table 5, "Shared C").
    """

    def __init__(self, blocks: int, rank: int, features: int, per_block: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.rank = rank
        self.degradation_mlp = nn.Sequential(nn.Linear(4 * features, _DEGRADATION_WIDTH), nn.ReLU())
        self.block_embeddings = nn.Embedding(blocks, _BLOCK_WIDTH) if per_block else None
        self.block_mlp = (
            nn.Sequential(nn.Linear(_BLOCK_WIDTH, _BLOCK_WIDTH), nn.ReLU()) if per_block else None
        )
        width = _DEGRADATION_WIDTH + (_BLOCK_WIDTH if per_block else 0)
        self.fuse = nn.Linear(width, rank * rank)
        nn.init.normal_(self.fuse.weight, std=0.1 / math.sqrt(width * rank))
        with torch.no_grad():
            self.fuse.bias.copy_(torch.eye(rank).flatten())

    def forward(self, embedding: Tensor) -> Tensor:
        """`[N, 4 m]` of the Fourier embedding to C: `[N, blocks, r, r]`."""
        hidden = self.degradation_mlp(embedding)[:, None].expand(-1, self.blocks, -1)
        if self.block_embeddings is not None and self.block_mlp is not None:
            block = self.block_mlp(self.block_embeddings.weight)[None].expand(embedding.shape[0], -1, -1)
            hidden = torch.cat([hidden, block], dim=-1)
        return self.fuse(hidden).unflatten(-1, (self.rank, self.rank))


class ModulationNetwork(nn.Module):
    """Fourier embedding, and one head each for the VAE and the UNet; by default none of it.

    Args:
        vae: (blocks, rank) of the VAE's LoRA; rank 0 where it has none.
        unet: likewise of the UNet's.
        features: m of the Fourier embedding.
        kind: per-block, shared, or none (then this module holds nothing and gives no matrices).
    """

    def __init__(
        self,
        vae: tuple[int, int] = (0, 0),
        unet: tuple[int, int] = (0, 0),
        features: int = 1,
        kind: ModulationKind = "none",
    ) -> None:
        super().__init__()

        def head(blocks: int, rank: int) -> ModulationHead | None:
            return ModulationHead(blocks, rank, features, kind == "per-block") if rank and used else None

        used = kind != "none" and bool(vae[1] or unet[1])
        self.embedding = FourierEmbedding(features) if used else None
        self.vae = head(*vae)
        self.unet = head(*unet)

    def forward(self, degradation: Tensor) -> Modulation:
        """`[N, 2]` float32 in [0, 1], in the checkpoint's axis order, to the matrices of both networks."""
        if self.embedding is None:
            return Modulation(None, None)
        embedding = self.embedding(degradation.float())
        return Modulation(*(None if head is None else head(embedding) for head in (self.vae, self.unet)))
