"""What PyTorch computes in fp32, stage by stage: the truth that a bundle is verified against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from s3diff_export.verification.cases import CheckCase
from s3diff_runtime.families import FAMILIES
from s3diff_runtime.progress import Steps
from s3diff_runtime.vocabulary import ColorFix
from s3diff_training.data import from_uint8
from s3diff_training.network.base import OneStep, ResidualStep
from s3diff_training.network.one_step_network import OneStepNetwork

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Reference:
    """Inputs and outputs of every stage for one case, by the names of the tensors."""

    case: CheckCase
    tensors: dict[str, Array]
    """`image` uint8 `[1, H, W, 3]`; `CheckCase.given`; what `OneStepNetwork.computed` names; `upscaled_<fix>`
    uint8."""
    one_step: OneStep | ResidualStep
    probes: Mapping[str, Mapping[str, Any]]
    """See `OneStepNetwork.probes`; of what was predicted in this case."""

    def prediction_of(self, x0: Array) -> Array:
        """What the UNet predicted where this case's latent became x0 `[1, c, h, w]`, in float64."""
        latent, result = (np.asarray(value, np.float64) for value in (self.tensors["latent"], x0))
        return np.asarray(self.one_step.prediction(latent, result))


@torch.no_grad()
def references(
    network: OneStepNetwork,
    cases: Sequence[CheckCase],
    color_fixes: Sequence[ColorFix],
    guided: bool = True,
    progress: Steps = lambda _: None,
) -> list[Reference]:
    """Run every case in fp32, with the mode of the posterior and the checkpoint's prompts.

    `guided` is at the checkpoint's guidance; False takes the positive prompt alone, as a bundle without
    guidance does.
    """
    unguided = {"guidance": 1.0} if FAMILIES[network.family].guides and not guided else {}
    truths = []
    for number, case in enumerate(cases, start=1):
        progress(f"PyTorch in fp32, case {number} of {len(cases)}")
        image = from_uint8(case.image)[None]
        restored = network.restore(image, **{"color_fix": "none", **case.asked, **unguided})
        computed = network.computed(image, restored, guided)
        for fix in color_fixes:
            levels = network.finish(restored.forward.decoded, restored.enlarged, fix) * 255
            computed[f"upscaled_{fix}"] = levels.round().to(torch.uint8).permute(0, 2, 3, 1)
        tensors = {name: tensor.numpy() for name, tensor in computed.items() if tensor is not None}
        found: dict[str, Array] = {"image": case.image[None], **case.given, **tensors}
        probes = {name: probe for name, probe in network.probes(guided).items() if name in tensors}
        truths.append(Reference(case, found, network.one_step, probes))
    return truths
