"""The group `bench`: its commands, each a function of one request, imported only when it runs."""

import functools
from collections.abc import Callable
from typing import Any, get_type_hints

from s3diff_runtime.command_line import LazyGroup, Member

_MEMBERS = {
    "all": Member(
        "s3diff_benchmarks.everything:run_all",
        "Run everything below on one bundle; one folder of reports with an index.",
    ),
    "latency": Member(
        "s3diff_benchmarks.speed.latency_run:run_latency",
        "Seconds for one call, by stage, beside PyTorch and the paper's Table 3.",
    ),
    "throughput": Member(
        "s3diff_benchmarks.speed.throughput:run_throughput",
        "Images per second, and the waiting times of callers under load.",
    ),
    "serve": Member(
        "s3diff_benchmarks.serving.run:run_serve_bench",
        "The HTTP service at twice what it can do, and under faults and attacks.",
    ),
    "quality": Member(
        "s3diff_benchmarks.pictures.quality:run_quality",
        "PSNR, SSIM, LPIPS and more on photographs, beside the paper's Tables 1, 2.",
    ),
    "peers": Member(
        "s3diff_benchmarks.peers:list_peers",
        "The ten systems of the paper's tables: how to run them, and what is missing here.",
    ),
    "fidelity": Member(
        "s3diff_benchmarks.pictures.fidelity:run_fidelity",
        "How far bins, fp16, engines and tiles take the result from the exact one.",
    ),
    "control": Member(
        "s3diff_benchmarks.pictures.control:run_control",
        "What the noise and blur scores do to one image, as the paper's Figure 11.",
    ),
    "ray": Member(
        "s3diff_benchmarks.clusters.sharing:run_ray_bench",
        "Pictures a second of upscale --ray, beside upscale, on this machine.",
    ),
    "plan": Member(
        "s3diff_benchmarks.clusters.plan:run_plan",
        "Reckon and simulate what a cluster takes for very many pictures.",
    ),
    "compare": Member(
        "s3diff_benchmarks.report.compare:show_changes", "Tell regressions from noise between two reports."
    ),
}


class _Benchmarks(LazyGroup):
    """Reports on what those commands find that return findings."""

    def work_of(self, name: str) -> Callable[[Any], None]:
        """The command that a name stands for, its report included."""
        from s3diff_benchmarks.report.findings import Findings, report_on

        work = super().work_of(name)
        if get_type_hints(work)["return"] is not Findings:
            return work

        @functools.wraps(work)
        def reported(request: Any) -> None:  # noqa: ANN401 - the command's own request
            report_on(name, work, request, request.output)

        return reported


bench = _Benchmarks(
    _MEMBERS,
    name="bench",
    help="""Measure how fast a bundle is and how good its images are.

    Every command shows tables; with -o FOLDER it also writes them as JSON, Markdown and plots, and with
    --html as a page. Figures of other machines are marked as published, and only what one run measured is set
    in ratio.

    \b
      s3diff-export bench all --demo -o bench-output --html
      s3diff-export bench latency s3diff.bundle --size 128,256 --batch 1,4 -o latency
      s3diff-export bench compare old/report.json new/report.json --fail-on 5
    """,
)
