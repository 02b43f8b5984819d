"""The discriminator: what is trained and what is frozen, its levels, its losses, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from s3diff_runtime.errors import RequestError
from s3diff_training.losses.adversarial import DinoDiscriminator, discriminator_loss, generator_loss


def tiny_vit(depth: int = 8) -> ViTModel:
    """A random ViT with the structure of DINO; its norms are random too, so that none is the identity."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    model = ViTModel(config, add_pooling_layer=False)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return model


def images(seed: int, count: int = 2, side: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_default_levels_are_evenly_spaced_and_end_at_the_last_block() -> None:
    assert DinoDiscriminator(tiny_vit(12)).levels == (3, 6, 9, 12)
    assert DinoDiscriminator(tiny_vit(8)).levels == (2, 4, 6, 8)
    assert DinoDiscriminator(tiny_vit(3)).levels == (1, 2, 3)


def test_each_level_gives_one_map_of_logits_per_image() -> None:
    model = DinoDiscriminator(tiny_vit())
    assert [tuple(logits.shape) for logits in model(images(0, count=3, side=50))] == [(3, 1, 4, 4)] * 4


def test_patch_maps_keep_their_place() -> None:
    """A change of one corner of the image moves that corner's features most, in the first block."""
    model = DinoDiscriminator(tiny_vit(1)).eval()
    model.heads[0] = nn.Identity()
    image = images(0, count=1, side=32)
    changed = image.clone()
    changed[..., :8, 24:] *= -1  # the patch in the first row, last column
    (before,), (after,) = model(image), model(changed)
    difference = (after - before).square().sum(dim=(0, 1))
    assert divmod(int(difference.argmax()), 4) == (0, 3)


def test_the_backbone_sees_imagenet_normalised_pixels() -> None:
    backbone = tiny_vit()
    model = DinoDiscriminator(backbone).eval()
    image = images(0, side=32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    tokens = backbone(((image + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states[2]
    tokens = functional.layer_norm(tokens[:, 1:], (16,))
    expected = model.heads[0](tokens.transpose(1, 2).reshape(2, 16, 4, 4))
    torch.testing.assert_close(model(image)[0], expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_image_and_the_heads_but_not_the_backbone() -> None:
    model = DinoDiscriminator(tiny_vit()).train()
    image = images(0).requires_grad_()
    generator_loss(model(image)).backward()
    assert image.grad is not None and bool(image.grad.isfinite().all()) and image.grad.abs().max() > 0
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.heads.parameters())
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.backbone.parameters())
    assert not model.backbone.training and model.heads.training


@pytest.mark.parametrize("place", range(4))
def test_every_level_contributes_to_the_losses_and_to_the_image_gradient(place: int) -> None:
    model = DinoDiscriminator(tiny_vit()).eval()
    image = images(0).requires_grad_()
    logits = model(image)
    (gradient,) = torch.autograd.grad(logits[place].sum(), image, retain_graph=True)
    assert gradient.abs().max() > 0
    moved = [level + (at == place) for at, level in enumerate(logits)]
    assert generator_loss(moved) < generator_loss(logits)
    assert (
        discriminator_loss(moved, logits)
        < discriminator_loss(logits, logits)
        < discriminator_loss(logits, moved)
    )


def test_losses_are_binary_cross_entropy_summed_over_levels() -> None:
    real = [torch.randn(2, 1, 4, 4), torch.randn(2, 1, 3, 3)]
    fake = [torch.randn(2, 1, 4, 4), torch.randn(2, 1, 3, 3)]

    def entropy(levels: list[torch.Tensor], target: float) -> torch.Tensor:
        parts = [functional.binary_cross_entropy(x.sigmoid(), torch.full_like(x, target)) for x in levels]
        return torch.stack(parts).sum()

    torch.testing.assert_close(generator_loss(fake), entropy(fake, 1.0))
    torch.testing.assert_close(discriminator_loss(real, fake), entropy(real, 1.0) + entropy(fake, 0.0))


def test_losses_stay_finite_for_sure_judges() -> None:
    sure = [torch.full((1, 1, 2, 2), 1e4)]
    assert generator_loss([-level for level in sure]).isfinite() and discriminator_loss(sure, sure).isfinite()


def test_a_few_steps_separate_sharp_from_smooth_images() -> None:
    model = DinoDiscriminator(tiny_vit()).train()
    optimizer = torch.optim.AdamW(model.heads.parameters(), lr=2e-3)

    def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        sharp = images(seed, count=8, side=32)
        return sharp, functional.avg_pool2d(sharp, 5, stride=1, padding=2)

    first = discriminator_loss(*(model(part) for part in batch(0))).item()
    for step in range(30):
        optimizer.zero_grad()
        discriminator_loss(*(model(part) for part in batch(step))).backward()
        optimizer.step()
    model.eval()
    real, fake = (model(part) for part in batch(1000))
    assert discriminator_loss(real, fake).item() < 0.7 * first
    scores = [
        torch.stack([level.mean(dim=(1, 2, 3)) for level in logits]).sum(dim=0) for logits in (real, fake)
    ]
    assert scores[0].min() > scores[1].max()


def test_loads_a_local_folder_with_the_same_answers(tmp_path: Path) -> None:
    backbone = tiny_vit()
    backbone.save_pretrained(tmp_path)
    made, loaded = DinoDiscriminator(backbone), DinoDiscriminator.from_pretrained(tmp_path)
    loaded.heads.load_state_dict(made.heads.state_dict())
    for expected, found in zip(made.eval()(images(0)), loaded.eval()(images(0)), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_backbone_that_cannot_be_read_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    advice = r"--dino.*facebook/dino-vits16.*--lambda-gan 0"
    with pytest.raises(RequestError, match=advice):
        DinoDiscriminator.from_pretrained("nobody/nothing")
    with pytest.raises(RequestError, match=f"no such folder.*{advice}"):
        DinoDiscriminator.from_pretrained(tmp_path / "missing")
    with pytest.raises(RequestError, match=advice):
        DinoDiscriminator.from_pretrained(tmp_path)
    tiny_vit().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(RequestError, match=advice) as caught:
        DinoDiscriminator.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_vit_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="--dino"):
        DinoDiscriminator.from_pretrained(tmp_path)


def test_all_that_does_not_fit_is_named_at_once() -> None:
    config = ViTConfig(hidden_size=16, num_attention_heads=2, image_size=20, patch_size=8, num_channels=1)
    with pytest.raises(RequestError, match=r"1 channels instead of 3; size 20.*patch size 8"):
        DinoDiscriminator(ViTModel(config))
