"""What may be asked of engines, and the shapes that follow from it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3diff_export.cli import cli, run
from s3diff_export.engines.building import require_builder
from s3diff_export.engines.options import (
    BatchRange,
    EngineOptions,
    SizeRange,
    exact_shapes,
    parse_size,
    stage_shapes,
)
from s3diff_runtime.bundle.engine_records import Profile, Range
from s3diff_runtime.bundle.manifest import Manifest, Stage
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.command_line import takes
from s3diff_runtime.engines.flavours import BUILDER_FLAVOURS, FLAVOURS, BuilderFlavour
from s3diff_runtime.errors import RequestError

RTX = EngineOptions("tensorrt-rtx")


def test_defaults_follow_the_runtimes_tiles() -> None:
    profile = RTX.profile(multiple=32)
    assert profile.height == profile.width == Range(min=8, opt=128, max=256)
    assert profile.batch == Range(min=1, opt=1, max=4)
    assert RTX.targets == ("8.6", "8.9", "12.0")
    assert RTX.profile(multiple=64).height.min == 16


@pytest.mark.parametrize(
    ("sizes", "height", "width"),
    [
        (SizeRange(max=(64, 512)), (8, 64, 64), (8, 128, 512)),
        (SizeRange(min=(160, 160)), (160, 160, 256), (160, 160, 256)),
        (SizeRange(min=(512, 8)), (512, 512, 512), (8, 128, 256)),
        (SizeRange(opt=(96, 320)), (8, 96, 256), (8, 320, 320)),
        (SizeRange((96, 128), (96, 128), (96, 128)), (96, 96, 96), (128, 128, 128)),
    ],
)
def test_defaults_make_room_for_what_was_given(
    sizes: SizeRange, height: tuple[int, int, int], width: tuple[int, int, int]
) -> None:
    profile = EngineOptions("tensorrt", sizes=sizes).profile(multiple=32)
    assert profile.height.sizes() == height
    assert profile.width.sizes() == width


def test_all_sizes_that_do_not_fit_are_named_at_once() -> None:
    options = EngineOptions("tensorrt", sizes=SizeRange((100, 128), (96, 128), (512, 4)))
    with pytest.raises(RequestError) as caught:
        options.profile(multiple=32)
    message = str(caught.value)
    for problem in (
        "height 100, 96, 512: expected min <= opt <= max",
        "height 100 is no multiple of 8; take 96 or 104",
        "width 128, 128, 4: expected min <= opt <= max",
        "width 4 is no multiple of 8; take 8 or 16",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("flavour", "options", "problems"),
    [
        ("tensorrt-rtx", {"timing_cache": Path("t")}, ["no timing cache", "leave out --timing-cache"]),
        ("tensorrt-rtx", {"version_compatible": True}, ["leave out --version-compatible"]),
        ("tensorrt-rtx", {"hardware_compatibility": "ampere_plus"}, ["--compute-capability instead"]),
        ("tensorrt", {"compute_capabilities": ("8.9",)}, ["the GPU of this machine"]),
        ("tensorrt-rtx", {"compute_capabilities": ("89", "8.9")}, ["--compute-capability '89'"]),
        ("onnx", {}, ["flavour is 'onnx', expected one of tensorrt, tensorrt-rtx"]),
        (
            "tensorrt-rtx",
            {"workspace_mib": 0, "optimization_level": 6, "hardware_compatibility": "all"},
            ["workspace_mib is 0", "optimization_level is 6, expected from 0 to 5", "'all', expected"],
        ),
    ],
)
def test_wrong_options_are_refused_with_the_reason(
    flavour: Any,  # noqa: ANN401
    options: dict[str, Any],
    problems: list[str],
) -> None:
    with pytest.raises(RequestError) as caught:
        EngineOptions(flavour, **options)
    assert [problem for problem in problems if problem not in str(caught.value)] == []


@pytest.mark.parametrize("batch", [(2, 1, 4), (0, 1, 4), (1, 5, 4)])
def test_batches_are_in_order(batch: tuple[int, int, int]) -> None:
    with pytest.raises(RequestError, match="batch {}, {}, {}: expected 1 <= min".format(*batch)):
        BatchRange(*batch)


@pytest.mark.parametrize("flavour", BUILDER_FLAVOURS)
def test_what_a_flavour_lacks_is_refused_only_where_it_is_asked_for(flavour: BuilderFlavour) -> None:
    """The table names fields; a name that is none would refuse nothing."""
    lacks = FLAVOURS[flavour].lacks
    assert lacks and set(lacks) < {each.name for each in fields(EngineOptions)}
    defaults = {name: getattr(EngineOptions, name) for name in lacks}
    assert EngineOptions(flavour, **defaults) == EngineOptions(flavour)


def test_targets_are_ascending_and_each_once() -> None:
    options = EngineOptions("tensorrt-rtx", compute_capabilities=("12.0", "8.9", "8.9", "8.0"))
    assert options.targets == ("8.0", "8.9", "12.0")


@pytest.mark.parametrize(("text", "size"), [("128", (128, 128)), ("96x128", (96, 128))])
def test_sizes_are_read_height_first(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x128", "96x", "96x128x3", "-8", "1e3", "9999999", "0", "0x128"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="HEIGHTxWIDTH"):
        parse_size(text)


# --- shapes ---------------------------------------------------------------------------------------


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def stage(*inputs: TensorSpec) -> Stage:
    return Stage(inputs=inputs, outputs=(), graphs={"shared": "onnx/any.onnx"})


def facts(multiple: int, vae_factor: int) -> Manifest:
    """A manifest of which only the factors are looked at."""
    return Manifest.model_construct(multiple=multiple, vae_factor=vae_factor)


@st.composite
def ranges(draw: st.DrawFn, multiple: int) -> Range:
    least, tuned, most = sorted(draw(st.lists(st.integers(1, 64), min_size=3, max_size=3)))
    return Range(min=least * multiple, opt=tuned * multiple, max=most * multiple)


@st.composite
def served(draw: st.DrawFn) -> tuple[Manifest, Profile]:
    vae_factor, unet_factor = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([2, 4, 8]))
    manifest = facts(vae_factor * unet_factor, vae_factor)
    sides = ranges(multiple=manifest.multiple // 4)
    return manifest, Profile(batch=draw(ranges(multiple=1)), height=draw(sides), width=draw(sides))


@given(served())
def test_shapes_are_those_of_the_padded_image(case: tuple[Manifest, Profile]) -> None:
    manifest, profile = case
    padding = manifest.multiple // 4
    everything = stage(
        spec("image", "batch", "height", "width", 3),
        spec("latent", "batch", 4, "latent_height", "latent_width"),
        spec("decoded", "batch", 3, "decoded_height", "decoded_width"),
        spec("unet_modulation", 1, 10, 32, 32),
        spec("vae_modulation", "batch", 5, 16, 16),
        spec("tokens", "prompts", 77),
        spec("guidance"),
    )
    shapes = stage_shapes(manifest, everything, profile)
    for which in range(3):
        image, latent, decoded = (shapes[name][which] for name in ("image", "latent", "decoded"))
        # an image of these sides, padded up as the encoder does, is what the later stages take
        padded = [-(-side // padding) * padding for side in image[1:3]]
        assert [side * 4 for side in padded] == list(decoded[2:])
        assert [side * 4 for side in padded] == [side * manifest.vae_factor for side in latent[2:]]
        assert all(side % (manifest.multiple // manifest.vae_factor) == 0 for side in latent[2:])
        assert image[0] == latent[0] == decoded[0] == shapes["vae_modulation"][which][0]
        assert shapes["unet_modulation"][which] == (1, 10, 32, 32)
        assert shapes["guidance"][which] == ()
        assert shapes["tokens"][which][1] == 77
    # every image that is padded up to the least size may come
    assert shapes["image"][0][1:3] == (
        profile.height.min - padding + 1,
        profile.width.min - padding + 1,
    )
    for each in shapes.values():
        assert all(low <= tuned <= most for low, tuned, most in zip(*each, strict=True))


def test_exact_profiles_are_for_one_image_and_for_the_runtimes_batch() -> None:
    manifest = facts(64, 8)
    image = stage(spec("image", "batch", "height", "width", 3), spec("tokens", "prompts", 77))
    options = EngineOptions("tensorrt", batch=BatchRange(max=8))
    found = exact_shapes(manifest, image, options.profile(64), options.exact_batches)
    assert found == tuple({"image": (count, 128, 128, 3), "tokens": (2, 77)} for count in (1, 4))
    texts = stage(spec("tokens", "prompts", 77))
    assert exact_shapes(manifest, texts, options.profile(64), options.exact_batches) == ({"tokens": (2, 77)},)
    assert EngineOptions("tensorrt", batch=BatchRange(2, 2, 3)).exact_batches == (2, 3)
    assert RTX.exact_batches == (), "it compiles kernels for the shapes that come"


# --- the command line -----------------------------------------------------------------------------


def options_of(*arguments: str) -> EngineOptions:
    found: list[EngineOptions] = []

    @click.command()
    @takes(EngineOptions)
    def command(options: EngineOptions) -> None:
        found.append(options)

    command.main(list(arguments), standalone_mode=False)
    return found[0]


def test_options_are_read_from_the_command_line() -> None:
    arguments = ["--min-size", "64", "--max-size", "96x512", "--opt-batch", "2", "--max-batch", "8"]
    arguments += ["--workspace-mib", "2048", "--optimization-level", "5", "--timing-cache", "t.cache"]
    arguments += ["--engine", "tensorrt", "--hardware-compatibility", "ampere_plus"]
    assert options_of(*arguments) == EngineOptions(
        "tensorrt",
        SizeRange(min=(64, 64), max=(96, 512)),
        BatchRange(opt=2, max=8),
        workspace_mib=2048,
        optimization_level=5,
        timing_cache=Path("t.cache"),
        hardware_compatibility="ampere_plus",
    )
    rtx = options_of("--engine", "tensorrt-rtx", "--compute-capability", "8.0, 8.9")
    assert rtx == EngineOptions("tensorrt-rtx", compute_capabilities=("8.0", "8.9"))
    assert options_of("--engine", "tensorrt-rtx") == RTX


def test_options_of_engines_need_an_engine() -> None:
    assert options_of().flavour is None
    with pytest.raises(RequestError, match="--max-size, --max-batch, --timing-cache without an engine; add"):
        options_of("--max-batch", "8", "--timing-cache", "t", "--max-size", "512")
    with pytest.raises(RequestError, match="--max-batch without an engine; add --engine tensorrt or tensorr"):
        EngineOptions(batch=BatchRange(max=8))
    with pytest.raises(RequestError, match="no engine was chosen; pass --engine tensorrt or tensorrt-rtx"):
        require_builder(EngineOptions())


def test_all_that_is_wrong_on_the_command_line_is_told_at_once() -> None:
    with pytest.raises(RequestError, match=r"size '9x'.*; batch 5, 1, 4: .*; .* has no timing cache"):
        options_of("--engine", "tensorrt-rtx", "--max-size", "9x", "--min-batch", "5", "--timing-cache", "t")


def test_wrong_options_end_the_build_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--demo", "-o", str(tmp_path / "b"), "--engine", "tensorrt-rtx"]
    assert run(cli, [*arguments, "--timing-cache", "t"]) == 2
    assert "no timing cache" in capsys.readouterr().err
    assert run(cli, [*arguments, "--compute-capability", "9.0"]) == 2
    assert "cannot build for compute capability 9.0" in capsys.readouterr().err
    assert run(cli, [*arguments, "--max-size", "100"]) == 2
    assert "100 is no multiple of 8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
