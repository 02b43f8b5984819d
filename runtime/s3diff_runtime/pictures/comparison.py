"""Before and after, side by side in one picture."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from s3diff_runtime.pictures.photograph import Photograph

LONGEST_SIDE = 2048
"""Of each half, in result pixels; of larger results the middle is shown."""

_CAPTION, _GAP = 32, 8
_TEXT_SIZE = 18


def before_and_after(photograph: Photograph, result: Image.Image) -> Image.Image:
    """The input, enlarged with bicubic interpolation, beside the result, both at the result's size.

    Transparent pictures are shown on white. Of results with a side over `LONGEST_SIDE` the middle is shown.

    Args:
        photograph: the input.
        result: what `photograph.finish` made.

    Returns:
        An image of mode L for grey pictures, else RGB, with the result's profile in `info`.
    """
    # Of a size that was asked for they are no whole numbers, and not quite equal.
    across, down = (after / before for after, before in zip(result.size, photograph.size, strict=True))
    left, top, right, bottom = _middle(photograph.size, int(LONGEST_SIDE / max(across, down)))
    window = (round(left * across), round(top * down), round(right * across), round(bottom * down))
    after = _on_white(result.crop(window))
    # The interpolation reaches over the crop's border into the picture, as it did for the network.
    before = _on_white(
        photograph.finish(photograph.pixels).resize(
            after.size, Image.Resampling.BICUBIC, box=(left, top, right, bottom)
        )
    )
    sheet = Image.new(after.mode, (2 * after.width + _GAP, after.height + _CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_TEXT_SIZE)
    for x, caption, half in (
        (0, f"bicubic x{across:.3g}", before),
        (after.width + _GAP, f"upscaled x{across:.3g}", after),
    ):
        draw.text((x + _GAP, _GAP // 2), caption, fill="black", font=font)
        sheet.paste(half, (x, _CAPTION))
    if "icc_profile" in result.info:
        sheet.info["icc_profile"] = result.info["icc_profile"]
    return sheet


def _middle(size: tuple[int, int], longest: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a centred window with no side over `longest`."""
    (left, right), (top, bottom) = (
        ((side - min(side, longest)) // 2, (side + min(side, longest)) // 2) for side in size
    )
    return left, top, right, bottom


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.mode:
        return image
    white = Image.new(image.mode.removesuffix("A"), image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
