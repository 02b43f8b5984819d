"""How a server runs a bundle: what the HTTP service and the model of Triton are both asked."""

from dataclasses import dataclass

from s3diff_runtime.engines.flavours import ENGINE_HELP
from s3diff_runtime.options import Options, group, option
from s3diff_runtime.pictures.photograph import MAX_PIXELS
from s3diff_runtime.upscale_options import UpscaleOptions


@dataclass(frozen=True)
class ServedModel(Options):
    """Of a bundle that is served."""

    engine: str = option("auto", ENGINE_HELP)
    max_pixels: int = option(4_000_000, "Larger pictures are refused.", least=1, most=MAX_PIXELS)
    options: UpscaleOptions = group(UpscaleOptions, only=("tile", "batch", "threads", "cpu_precision"))
