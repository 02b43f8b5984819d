"""Figures that others published, each with its source, and the paper's Table 3 with ours beside it.

The paper is "Degradation-Guided One-Step Image Super-Resolution with Diffusion Priors"; where its tables and
the works that it compares with disagree, both stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from s3diff_benchmarks.report.model import Cell, Column, Table
from s3diff_runtime.errors import RequestError


@dataclass(frozen=True)
class PublishedQuality:
    """Mean scores of a method on a data set; None where they were not published. Y channel, sizes in [0, 1].

    The number behind a method's name is its diffusion steps.
    """

    name: str
    psnr: float | None
    ssim: float | None
    lpips: float | None
    dists: float | None
    fid: float | None
    niqe: float
    musiq: float
    maniqa: float
    clipiqa: float
    source: str


@dataclass(frozen=True)
class PublishedSpeed:
    """Seconds for one image, as somebody measured them elsewhere; parameters in millions."""

    method: str
    steps: int
    seconds: float
    machine: str
    trainable_millions: float | None
    what: str
    source: str


# In the paper's order: method, then PSNR SSIM LPIPS DISTS FID NIQE MANIQA MUSIQ CLIPIQA.
_TABLE_1: Mapping[str, str] = MappingProxyType(
    {
        "DIV2K-Val": """
            BSRGAN       24.58  0.6269  0.3351  0.2275  44.23  4.7527  0.3560  61.19  0.5243
            Real-ESRGAN  24.29  0.6371  0.3112  0.2141  37.65  4.6797  0.3822  61.06  0.5278
            LDM-100      23.49  0.5762  0.3119  0.2727  41.37  5.0249  0.5127  62.27  0.6245
            StableSR-200 23.28  0.5732  0.3111  0.2043  24.31  4.7570  0.4200  65.81  0.6753
            PASD-20      24.32  0.6218  0.3763  0.2184  30.17  5.2946  0.4022  61.19  0.5676
            DiffBIR-50   23.64  0.5647  0.3524  0.2128  30.72  4.7042  0.4768  65.81  0.6704
            SeeSR-50     23.67  0.6042  0.3194  0.1968  25.89  4.8158  0.5041  68.67  0.6932
            ResShift-15  24.71  0.6234  0.3402  0.2245  42.01  6.4732  0.3985  60.87  0.5933
            SinSR-1      24.41  0.6017  0.3244  0.2068  35.22  5.9996  0.4239  62.73  0.6468
            OSEDiff-1    23.30  0.5970  0.3046  0.2129  26.80  5.4050  0.4458  65.56  0.6584
            S3Diff-1     23.40  0.5953  0.2571  0.1730  19.35  4.7391  0.4538  68.21  0.7007
        """,
        "RealSR": """
            BSRGAN       26.38  0.7655  0.2656  0.2124  141.28  5.6356  0.3799  63.29  0.5114
            Real-ESRGAN  25.65  0.7603  0.2727  0.2065  136.33  5.8554  0.3765  60.45  0.4518
            LDM-100      26.33  0.6986  0.4148  0.2454  143.35  6.3368  0.3841  55.82  0.5060
            StableSR-200 24.60  0.7047  0.3068  0.2163  132.20  5.7848  0.4336  65.71  0.6298
            PASD-20      26.56  0.7636  0.2838  0.1999  120.94  5.8052  0.3887  59.89  0.4924
            DiffBIR-50   24.24  0.6650  0.3469  0.2300  134.65  5.4909  0.4853  64.25  0.6543
            SeeSR-50     25.14  0.7210  0.3007  0.2224  125.44  5.3971  0.5429  69.81  0.6698
            ResShift-15  26.38  0.7567  0.3159  0.2433  149.66  6.8703  0.3970  60.21  0.5488
            SinSR-1      26.16  0.7368  0.3075  0.2332  136.47  6.0054  0.4035  60.95  0.6304
            OSEDiff-1    24.43  0.7153  0.3173  0.2363  126.13  6.3821  0.4878  67.53  0.6733
            S3Diff-1     25.03  0.7321  0.2699  0.1996  108.88  5.3311  0.4563  67.89  0.6722
        """,
        "DRealSR": """
            BSRGAN       28.70  0.8028  0.2858  0.2144  155.63  6.5296  0.3435  57.17  0.5094
            Real-ESRGAN  28.61  0.8052  0.2819  0.2089  147.62  6.6782  0.3449  54.27  0.4520
            LDM-100      28.70  0.7409  0.4849  0.2889  164.80  8.0084  0.3240  54.35  0.6047
            StableSR-200 28.24  0.7596  0.3149  0.2234  149.18  6.6920  0.3697  57.42  0.6062
            PASD-20      29.07  0.7921  0.3146  0.2179  138.47  7.4215  0.3637  50.34  0.5112
            DiffBIR-50   25.93  0.6526  0.4518  0.2762  177.41  6.2261  0.4922  63.47  0.6859
            SeeSR-50     28.07  0.7684  0.3174  0.2315  147.41  6.3807  0.5145  65.08  0.6903
            ResShift-15  28.69  0.7875  0.3525  0.2542  176.57  7.8754  0.3505  52.37  0.5402
            SinSR-1      28.37  0.7486  0.3684  0.2475  172.77  7.0558  0.3829  54.97  0.6333
            OSEDiff-1    27.65  0.7743  0.3177  0.2366  141.95  7.2915  0.4845  63.55  0.7056
            S3Diff-1     26.89  0.7469  0.3122  0.2120  119.86  6.1647  0.4508  64.19  0.7122
        """,
    }
)

# Method, then NIQE MANIQA MUSIQ CLIPIQA; this data set has no truth.
_TABLE_2 = """
    BSRGAN       4.5801  0.3898  65.58  0.6159
    Real-ESRGAN  4.3487  0.3934  64.12  0.6074
    StableSR-200 5.0371  0.4442  62.79  0.5982
    DiffBIR-50   4.2559  0.4984  69.81  0.7468
    SeeSR-50     4.8959  0.4982  68.88  0.6805
    ResShift-15  6.0893  0.4106  60.90  0.6522
    SinSR-1      5.9221  0.4341  62.85  0.7172
    OSEDiff-1    5.2142  0.4666  68.48  0.7061
    S3Diff-1     4.2467  0.4685  68.92  0.7120
"""

_PAPER_SPEED = """
    StableSR 200  17.75  150.0
    DiffBIR  50   16.06  380.0
    SeeSR    50   5.64   749.9
    ResShift 15   1.65   118.6
    SinSR    1    0.42   118.6
    OSEDiff  1    0.60   8.5
    S3Diff   1    0.62   34.5
"""
"""Method, steps, seconds, millions of trainable parameters."""

_A100 = "NVIDIA A100"
_SUPER_RESOLUTION = "128→512"
_LIKE_FOR_LIKE = (
    PublishedSpeed(
        "OSEDiff, fp16 and merged LoRA", 1, 0.105, _A100, 8.5, _SUPER_RESOLUTION, "OSEDiff's repository"
    ),
    PublishedSpeed("InvSR", 1, 0.117, _A100, None, _SUPER_RESOLUTION, "the InvSR paper"),
    PublishedSpeed("SinSR", 1, 0.138, _A100, None, _SUPER_RESOLUTION, "the InvSR paper"),
    PublishedSpeed("SD-Turbo, torch.compile", 1, 0.047, _A100, None, "text→512", "published for SD-Turbo"),
    PublishedSpeed(
        "SD-Turbo, TensorRT fp16, static, batch 1",
        1,
        0.036,
        _A100,
        None,
        "text→512",
        "published for SD-Turbo",
    ),
)
"""What others reach with the means that we use; the paper's own seconds are a weak target."""


DATASETS = ("RealSR", "DRealSR", "DIV2K-Val", "RealSet65")
"""Those of the paper's tables."""


def dataset_named(text: str) -> str:
    """The data set of the paper that is meant, in capitals or not.

    Raises:
        RequestError: for another one.
    """
    found = {name.lower(): name for name in DATASETS}.get(text.lower())
    if found is None:
        raise RequestError(f"the paper has no scores for {text!r}; it has them for {', '.join(DATASETS)}")
    return found


def quality_rows(dataset: str) -> tuple[PublishedQuality, ...]:
    """The paper's rows for DIV2K-Val, RealSR, DRealSR (Table 1) or RealSet65 (Table 2), in its order.

    Raises:
        RequestError: for another data set.
    """
    if dataset == "RealSet65":
        return tuple(_without_truth(line) for line in _TABLE_2.strip().splitlines())
    if dataset not in _TABLE_1:
        known = ", ".join([*_TABLE_1, "RealSet65"])
        raise RequestError(f"the paper has no scores for {dataset!r}; it has them for {known}")
    return tuple(_with_truth(line) for line in _TABLE_1[dataset].strip().splitlines())


def speed_rows() -> tuple[PublishedSpeed, ...]:
    """The paper's Table 3, then like-for-like figures from elsewhere."""
    paper = []
    for line in _PAPER_SPEED.strip().splitlines():
        method, steps, seconds, parameters = line.split()
        source = "the paper, Table 3"
        paper.append(
            PublishedSpeed(
                method, int(steps), float(seconds), _A100, float(parameters), _SUPER_RESOLUTION, source
            )
        )
    return (*paper, *_LIKE_FOR_LIKE)


def table3(
    ours: float | None,
    machine: str,
    trainable_millions: float | None,
    baselines: Mapping[str, float] = MappingProxyType({}),
) -> Table:
    """The paper's Table 3 with rows of this run.

    Ratios stand only beside what was measured in this run, never beside a figure of another machine.

    Args:
        ours: seconds for one image, 128→512; None where that was not measured.
        machine: the name of the one that this run measured on.
        trainable_millions: parameters that the checkpoint trains; None where there is no checkpoint.
        baselines: seconds for the same image of other ways to compute S3Diff, measured in the same run.
    """
    rows: list[tuple[Cell, ...]] = [
        (row.method, row.source, row.what, row.machine, row.steps, row.seconds, row.trainable_millions, None)
        for row in speed_rows()
    ]
    measured = baselines if ours is None else {"S3Diff, this bundle": ours, **baselines}
    for name, seconds in measured.items():
        ratio = None if ours is None else seconds / ours
        rows.append((name, "this run", _SUPER_RESOLUTION, machine, 1, seconds, trainable_millions, ratio))
    return Table(
        name="table3",
        title="The paper's Table 3, and this run",
        columns=(
            Column(name="method"),
            Column(name="source"),
            Column(name="task"),
            Column(name="machine"),
            Column(name="steps"),
            Column(name="time", unit="s", better="lower"),
            Column(name="trainable", unit="M parameters", digits=4),
            Column(name="time, this bundle = 1"),
        ),
        rows=tuple(rows),
        key=4,
        note=(
            "Only the rows of this run were measured here; the others are as published, on their own "
            "machines, and no ratio can be taken across machines."
        ),
    )


def _with_truth(line: str) -> PublishedQuality:
    name, *texts = line.split()
    psnr, ssim, lpips, dists, fid, niqe, maniqa, musiq, clipiqa = map(float, texts)
    return PublishedQuality(
        name, psnr, ssim, lpips, dists, fid, niqe, musiq, maniqa, clipiqa, "the paper, Table 1"
    )


def _without_truth(line: str) -> PublishedQuality:
    name, *texts = line.split()
    niqe, maniqa, musiq, clipiqa = map(float, texts)
    nothing = (None, None, None, None, None)
    return PublishedQuality(name, *nothing, niqe, musiq, maniqa, clipiqa, "the paper, Table 2")
