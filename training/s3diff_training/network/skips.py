"""Skip connections from the VAE's encoder to its decoder (paper Table 4, after img2img-turbo)."""

from diffusers import AutoencoderKL
from torch import Tensor, nn

_INITIAL_SCALE = 1e-5


class SkipConnections(nn.Module):
    """One 1x1 convolution per level, from what enters an encoder level to what enters its decoder level.

    Args:
        vae: the autoencoder whose widths decide the convolutions'; weights start at 1e-5, near no effect.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        widths = list(vae.config.block_out_channels)
        encoder_inputs = [widths[0], *widths[:-1]]
        decoder_inputs = [widths[-1], *reversed(widths[1:])]
        self.convs = nn.ModuleList(
            nn.Conv2d(source, target, 1, bias=False)
            for source, target in zip(reversed(encoder_inputs), decoder_inputs, strict=True)
        )
        for conv in self.convs:
            nn.init.constant_(conv.weight, _INITIAL_SCALE)  # type: ignore[arg-type]

    def encode(self, vae: AutoencoderKL, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Moments `[N, 2 c, h, w]` of the posterior, and what entered each encoder level."""
        encoder = vae.encoder
        sample = encoder.conv_in(image)
        entered = []
        for block in encoder.down_blocks:
            entered.append(sample)
            sample = block(sample)
        sample = encoder.mid_block(sample)
        sample = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(sample)))
        return vae.quant_conv(sample) if vae.quant_conv is not None else sample, entered

    def decode(self, vae: AutoencoderKL, latent: Tensor, entered: list[Tensor]) -> Tensor:
        """Decode `[N, c, h, w]`, adding what entered the encoder's levels to the decoder's."""
        decoder = vae.decoder
        sample = vae.post_quant_conv(latent) if vae.post_quant_conv is not None else latent
        sample = decoder.mid_block(decoder.conv_in(sample))
        for conv, skip, block in zip(self.convs, reversed(entered), decoder.up_blocks, strict=True):
            sample = block(sample + conv(skip))
        decoded: Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(sample)))
        return decoded
