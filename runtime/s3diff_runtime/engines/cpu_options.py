"""What engines on a CPU can be asked for."""

from dataclasses import dataclass
from typing import Literal

from s3diff_runtime.options import Options, option

CpuPrecision = Literal["auto", "bf16", "f32"]


@dataclass(frozen=True)
class CpuOptions(Options):
    """How an engine uses the processor."""

    threads: int | None = option(None, "CPU threads of the engine.", least=1, shown="all cores")
    cpu_precision: CpuPrecision = option(
        "auto",
        "What OpenVINO computes in; auto takes bf16 for fp16 bundles where the processor has it, else f32.",
    )
