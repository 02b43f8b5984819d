"""The rules that hold for all rooms: who imports whom, what is documented, how the command line fails."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from s3diff_export import cli
from s3diff_runtime.command_line import Member

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = {
    "s3diff_training": REPOSITORY / "training" / "s3diff_training",
    "s3diff_export": REPOSITORY / "export" / "s3diff_export",
    "s3diff_runtime": REPOSITORY / "runtime" / "s3diff_runtime",
    "s3diff_benchmarks": REPOSITORY / "benchmarks" / "s3diff_benchmarks",
}
MAY_IMPORT = {
    "s3diff_training": {"s3diff_runtime"},
    "s3diff_export": {"s3diff_training", "s3diff_runtime"},
    "s3diff_runtime": set(),
    "s3diff_benchmarks": {"s3diff_runtime", "s3diff_training"},
}
HEAVY = {"torch", "diffusers", "peft", "transformers", "onnx"}
MOST_LINES = 400

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imported_packages(source: str) -> set[str]:
    """The top-level names of all absolute imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def undocumented(node: Documented, name: str) -> Iterator[str]:
    """The public things at or below `node` that have no docstring; what a function holds is private to it."""
    if not ast.get_docstring(node):
        yield name
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not child.name.startswith("_"):
            yield from undocumented(child, f"{name}:{child.name}")


# --- who may import whom --------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_data(room: str) -> None:
    forbidden = set(ROOMS) - MAY_IMPORT[room] - {room}
    if room == "s3diff_runtime":
        forbidden |= HEAVY
    files = sources(ROOMS[room])
    assert files, f"{room} has no modules"
    broken = {
        relative(file): found for file in files if (found := imported_packages(file.read_text()) & forbidden)
    }
    assert not broken


def test_import_scan_sees_imports_inside_functions() -> None:
    source = "import a.b\ndef f():\n    from c.d import e\n    from . import near\n"
    assert imported_packages(source) == {"a", "c"}


def imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of this house that a file imports, wherever in it and however: for types alone, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in names if name in modules}


def circle_of(imports: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle; none where there is no circle."""
    try:
        list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for folder in ROOMS.values()
        for file in sources(folder)
    }
    imports = {name: imported_modules(file, modules) - {name} for name, file in modules.items()}
    # A package's own __init__ runs before its modules, and may name them.
    packages = {name for name, file in modules.items() if file.name == "__init__.py"}
    assert sum(map(len, imports.values())) > len(modules)
    assert not circle_of({name: found - packages for name, found in imports.items() if name not in packages})


def test_circle_scan_sees_a_circle() -> None:
    assert set(circle_of({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert not circle_of({"a": {"b", "c"}, "b": {"c"}})


def loaded_after(statements: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after the statements."""
    script = f"{statements}\nimport sys\nprint('LOADED', *{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.rpartition("LOADED ")[2].split())


def test_runtime_loads_no_framework() -> None:
    loaded = loaded_after("import s3diff_runtime")
    assert "s3diff_runtime" in loaded
    assert not loaded & HEAVY


def test_upscaling_on_this_machine_loads_nothing_for_others() -> None:
    loaded = loaded_after("import s3diff_runtime.batch.upscaling, s3diff_runtime.bundle.hub")
    assert "s3diff_runtime" in loaded
    assert not loaded & {"fsspec", "s3fs", "huggingface_hub", "ray", "pandas", "pyarrow"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_root_command_imports_no_room(arguments: list[str]) -> None:
    loaded = loaded_after(f"from s3diff_export import cli\ncli.run(cli.cli, {arguments})")
    assert "s3diff_export" in loaded
    assert not loaded & (HEAVY | {"numpy", "pydantic", "PIL", "s3diff_training", "s3diff_benchmarks"})


# --- how the code is kept -------------------------------------------------------------------------


def test_public_things_have_docstrings() -> None:
    missing = [
        name
        for file in sources(*ROOMS.values())
        for name in undocumented(ast.parse(file.read_text()), relative(file))
    ]
    assert not missing


def test_docstring_scan_finds_what_is_missing() -> None:
    methods = "class A:\n    def f(self): ...\n    def _g(self): ...\n"
    source = f'"""m"""\n{methods}def h():\n    """h"""\n    def i(): ...\n'
    assert list(undocumented(ast.parse(source), "m")) == ["m:A", "m:A:f"]


def test_torch_is_bounded_while_graphs_are_made_with_its_older_tracer() -> None:
    """The tracer is to go: versions that may lack it are shut out, and the first that does fails here."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["optional-dependencies"]["export"])
    (versions,) = (each.specifier for each in requirements if each.name == "torch")
    installed = Version(torch.__version__)
    assert installed in versions
    assert Version(f"{installed.major}.{installed.minor + 1}.0") not in versions
    importlib.import_module("torch.onnx._internal.torchscript_exporter.jit_utils")
    assert "dynamo" in inspect.signature(torch.onnx.export).parameters


def test_files_stay_readable() -> None:
    files = sources(*ROOMS.values(), REPOSITORY / "tests", REPOSITORY / "tools")
    lengths = {relative(file): len(file.read_text().splitlines()) for file in files}
    assert not {file: lines for file, lines in lengths.items() if lines > MOST_LINES}


def committed_text_files() -> Iterator[Path]:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for path in map(REPOSITORY.__truediv__, names.splitlines()):
        if path.is_file() and b"\0" not in path.read_bytes()[:8192]:
            yield path


def test_no_machine_paths_or_package_hosts() -> None:
    # The words are put together here, so that this file passes its own test.
    folders = "|".join(["work", "root", "home", "mnt", "opt", "Users"])
    hosts = ["pypi" + ".org", "python" + "hosted.org", "download.py" + "torch.org", "debian" + ".org"]
    pattern = re.compile(rf"(?<![\w.~$}})/-])/(?:{folders})/\w|{'|'.join(map(re.escape, hosts))}")
    found = {
        f"{relative(path)}:{number}": line.strip()
        for path in committed_text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    }
    assert not found


# --- how the command line fails -------------------------------------------------------------------

FAKE_ROOM = '''
import click

class WrongRequest(Exception):
    exit_code = 2

class FailedJob(Exception):
    exit_code = 1

@click.command()
@click.argument("ending")
@click.option("--count", type=int)
def command(ending, count):
    """Do what ENDING says."""
    if ending == "request":
        raise WrongRequest("the scale is 3,\\n  expected 4")
    if ending == "job":
        raise FailedJob("the loss is not finite")
    if ending == "bug":
        raise ValueError("surprise")
    if ending == "interrupt":
        raise KeyboardInterrupt
    if ending == "extra":
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    click.echo("done")

@click.group()
def group():
    """Commands below."""

group.add_command(command, "inner")
'''


@pytest.fixture
def fake_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[cli.RootGroup]:
    (tmp_path / "fake_room.py").write_text(FAKE_ROOM)
    (tmp_path / "fake_torch_room.py").write_text("import onnxscript.missing_here\n")
    (tmp_path / "fake_broken_room.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # what an extra that is not installed looks like
    yield cli.RootGroup(
        {
            "do": Member("fake_room:command", "Do it.", "export"),
            "group": Member("fake_room:group", "Hold others.", "train"),
            "unfurnished": Member("fake_torch_room:command", "Lacks an extra.", "export"),
            "broken": Member("fake_broken_room:command", "Has a bug.", "export"),
        }
    )
    for name in ("fake_room", "fake_torch_room", "fake_broken_room"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["do", "request"], 2, "error: the scale is 3, expected 4"),
        (["do", "job"], 1, "error: the loss is not finite"),
        (["do", "bug"], 1, "error: unexpected ValueError: surprise (s3diff-export --debug shows where)"),
        (["do", "interrupt"], 130, "error: interrupted"),
        (["do", "extra"], 2, "error: torch is not installed: pip install 's3diff-export[export]'"),
        (["group", "inner", "request"], 2, "error: the scale is 3, expected 4"),
        (["group", "inner", "extra"], 2, "error: torch is not installed: pip install 's3diff-export[train]'"),
        (["unfurnished"], 2, "error: onnxscript is not installed: pip install 's3diff-export[export]'"),
        (["broken"], 1, "error: unexpected ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        (["do"], 2, "error: Missing argument 'ENDING'. (see s3diff-export do --help)"),
        (["do", "well", "--count", "x"], 2, "error: Invalid value for '--count'"),
        (["dew"], 2, "error: No such command 'dew'."),
        (["--wrong"], 2, "error: No such option"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    fake_root: cli.RootGroup,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    exit_code: int,
    message: str,
) -> None:
    assert cli.run(fake_root, arguments) == exit_code
    captured = capsys.readouterr()
    errors = captured.err.lstrip("\n")  # click ends the line that ^C was typed on
    assert captured.out == ""
    assert errors.startswith(message)
    assert errors.count("\n") == 1


def test_debug_shows_the_traceback_and_keeps_the_exit_code(
    fake_root: cli.RootGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(fake_root, ["--debug", "do", "request"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback (most recent call last)" in errors
    assert errors.endswith("error: the scale is 3, expected 4\n")


def test_a_command_that_succeeds_exits_zero(
    fake_root: cli.RootGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(fake_root, ["do", "well"]) == 0
    assert capsys.readouterr().out == "done\n"


def test_help_lists_commands_without_importing_them(
    fake_root: cli.RootGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(fake_root, ["--help"]) == 0
    listing = capsys.readouterr().out
    assert re.search(r"unfurnished +Lacks an extra\.", listing)
    assert "fake_room" not in sys.modules


def test_every_subcommand_exists() -> None:
    context = click.Context(cli.cli)
    for name in cli.SUBCOMMANDS:
        _, command, _ = cli.cli.resolve_command(context, [name])
        assert isinstance(command, click.Command)
        assert command.help


def test_console_script_runs() -> None:
    script = Path(sys.executable).with_name("s3diff-export")
    result = subprocess.run([script, "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: No such command 'nonsense'")
