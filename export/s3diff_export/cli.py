"""The root of the command line: names every room's subcommands and imports a room only when its command runs.

So `s3diff-export --help` is instant, and a command works wherever what it needs itself is installed. All
errors leave through here, as one line: exit code 2 for a wrong request, 1 for a failed job, 130 when
interrupted.
"""

import codecs
import io
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import click

from s3diff_runtime.command_line import LazyGroup, Member
from s3diff_runtime.errors import one_line

# The top-level modules that only extras bring; any other missing module is a bug, not an incomplete install.
OPTIONAL_MODULES = frozenset(
    {
        "accelerate",
        "cuda",
        "diffusers",
        "fastapi",
        "huggingface_hub",
        "jinja2",
        "kornia",
        "matplotlib",
        "onnx",
        "onnx_graphsurgeon",
        "onnx_ir",
        "onnxruntime",
        "onnxscript",
        "peft",
        "polygraphy",
        "prometheus_client",
        "pynvml",
        "python_multipart",
        "safetensors",
        "scipy",
        "starlette",
        "tensorrt",
        "tensorrt_rtx",
        "tokenizers",
        "torch",
        "transformers",
        "uvicorn",
    }
)
_LINES = {chr(code): "+" for code in range(0x2500, 0x2580)} | {"─": "-", "━": "-", "╸": "-", "│": "|"}
_SPELLED = _LINES | {"×": "x", "–": "-", "…": "...", "→": "->", "²": "^2"}
"""What is said to terminals that know no other letters than ASCII's."""
_EXIT_INTERRUPTED = 130


SUBCOMMANDS: Mapping[str, Member] = MappingProxyType(
    {
        "build": Member(
            "s3diff_export.commands:build",
            "Turn S3Diff weights into a bundle that needs no torch.",
            "export,cpu",
        ),
        "upscale": Member(
            "s3diff_runtime.batch.upscaling:run_upscale", "Upscale photographs ×4 with a bundle.", "cpu"
        ),
        "serve": Member(
            "s3diff_runtime.serving.command:run_serve",
            "Serve a bundle over HTTP, with a page for photographers.",
            "serve,cpu",
        ),
        "engines": Member(
            "s3diff_export.engines.adding:engines",
            "Build TensorRT engines on this machine and add them to a bundle.",
            "tensorrt",
        ),
        "verify": Member(
            "s3diff_export.commands:verify", "Compare a bundle with PyTorch in fp32.", "export,cpu"
        ),
        "bench": Member(
            "s3diff_benchmarks.commands:bench",
            "Measure speed, memory and quality of bundles, beside the paper's figures.",
            "bench,cpu",
        ),
        "inspect": Member(
            "s3diff_runtime.bundle.inspection:run_inspect", "Show what a bundle is and can do.", "cpu"
        ),
        "triton-repository": Member(
            "s3diff_runtime.serving.triton_repository:write_repository",
            "Write a bundle as a model of NVIDIA Triton Inference Server.",
            "cpu",
        ),
        "push": Member(
            "s3diff_runtime.bundle.hub:run_push", "Publish a bundle on the Hub, with its card.", "hub"
        ),
        "pull": Member(
            "s3diff_runtime.bundle.hub:run_pull", "Fetch a bundle from the Hub or an object store.", "hub"
        ),
        "convert-checkpoint": Member(
            "s3diff_training.commands:convert_checkpoint",
            "Convert a checkpoint to our format, or to the released one.",
            "train",
        ),
        "train": Member(
            "s3diff_training.train.group:train",
            "Train LoRA, the degradation estimator, or a small base model.",
            "train",
        ),
        "restore": Member(
            "s3diff_training.commands:restore", "Upscale photographs ×4 with the PyTorch network.", "train"
        ),
    }
)


def failure(error: Exception, extra: str) -> click.ClickException:
    """What the user is told about an exception that left a command: one line, and the exit code.

    Args:
        error: any exception. An integer attribute `exit_code` marks one that a room raised on purpose.
        extra: the extra that installs what the command needs.
    """
    message, code = str(error), getattr(error, "exit_code", None)
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing in OPTIONAL_MODULES:
        code, message = 2, f"{missing} is not installed: pip install 's3diff-export[{extra}]'"
    elif not isinstance(code, int):
        code, message = 1, f"unexpected {type(error).__name__}: {error} (s3diff-export --debug shows where)"
    told = click.ClickException(message)
    told.exit_code = code  # type: ignore[misc]
    return told


class RootGroup(LazyGroup):
    """The root command, through which every error leaves."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        super().__init__(
            members,
            name="s3diff-export",
            help="Train S3Diff, and turn its weights into engines that upscale photographs ×4.",
            params=[click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")],
            callback=lambda debug: None,  # `invoke` reads the option
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand; every exception that is not click's own becomes one, see `failure`."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # the last, when whoever reads has read enough, ends quietly in click
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            raise failure(error, self.members[ctx.invoked_subcommand or ""].extra) from error


cli = RootGroup(SUBCOMMANDS)
click.version_option(package_name="s3diff-export", message="%(prog)s %(version)s")(cli)


def run(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: those of the process) and return the exit code.

    Errors are printed on standard error, one line each.
    """
    try:
        code = command.main(
            None if arguments is None else list(arguments), prog_name="s3diff-export", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return _report(error.format_message() + hint, error.exit_code)
    except click.ClickException as error:
        return _report(error.format_message(), error.exit_code)
    except click.Abort:
        return _report("interrupted", _EXIT_INTERRUPTED)
    return code if isinstance(code, int) else 0


def _report(message: str, exit_code: int) -> int:
    click.echo(f"error: {one_line(message)}", err=True)
    return exit_code


class _AsciiStream(io.TextIOWrapper):
    """Writes ASCII; click takes a stream that says so for a misconfigured one, and would write UTF-8."""

    encoding = "utf-8"


def _spelled_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """What a stream writes for letters that its encoding lacks, and for names of files that are not UTF-8."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if 0xDC80 <= ord(letter) <= 0xDCFF and error.encoding != "ascii":  # a byte of such a name, as it is
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return _SPELLED.get(letter) or f"\\u{ord(letter):04x}", error.start + 1


def _suit_terminal() -> None:
    """Let the standard streams write everything: terminals of ASCII get ASCII, and no name is an error."""
    codecs.register_error("spelled out", _spelled_out)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if codecs.lookup(stream.encoding).name == "ascii":
            ascii_stream = _AsciiStream(stream.buffer, "ascii", "spelled out", line_buffering=True)
            setattr(sys, name, ascii_stream)
        else:
            stream.reconfigure(errors="spelled out")


def main() -> None:
    """Entry point of the console script `s3diff-export`; a termination tidies up like an interruption."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _suit_terminal()
    sys.exit(run(cli))
