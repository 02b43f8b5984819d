"""Files and folders that exist whole or not at all, whatever stops their writer, and wherever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from s3diff_runtime import files
from s3diff_runtime.errors import JobError
from s3diff_runtime.files import replacing, tidy_up, write_text


def write_folder(path: Path, content: str) -> None:
    with replacing(path) as folder:
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.txt").write_text(content)


def content_of(path: Path) -> set[str]:
    """The texts of a folder's three files, or of a file."""
    if path.is_dir():
        assert sorted(each.name for each in path.iterdir()) == ["0.txt", "1.txt", "2.txt"]
        return {each.read_text() for each in path.iterdir()}
    return {path.read_text()}


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture(autouse=True)
def fresh_memory() -> None:
    files._tidy_up.cache_clear()


@pytest.fixture(params=["exchange", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that exchanges folders in one step, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return str(request.param)


@pytest.mark.usefixtures("system")
def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for content in ("old", "new"):
        write_folder(tmp_path / "bundle", content)
        assert content_of(tmp_path / "bundle") == {content}
    assert hidden(tmp_path) == []


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    write_folder(tmp_path / "bundle", "old")
    with pytest.raises(error), replacing(tmp_path / "bundle") as folder:
        folder.mkdir()
        (folder / "0.txt").write_text("new")
        raise error
    assert content_of(tmp_path / "bundle") == {"old"}
    assert hidden(tmp_path) == []


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Interrupt the writer around its `at`-th step on the disk; returns how many there were."""
    steps = 0

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def step(*given: object, **named: object) -> object:
            nonlocal steps
            steps += 1
            if steps == at:
                raise KeyboardInterrupt
            result = original(*given, **named)
            steps += 1
            if steps == at:
                if original is locked and isinstance(result, int):
                    os.close(result)  # as the end of the process does, which is what comes next
                raise KeyboardInterrupt
            return result

        return step

    locked = files._locked
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    for name in ("_locked", "_exchange", "_remove"):
        monkeypatch.setattr(files, name, counted(getattr(files, name)))
    return lambda: steps


@pytest.mark.usefixtures("system")
def test_an_interruption_at_any_step_leaves_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, 100):
        folder = tmp_path / str(at)
        folder.mkdir()
        write_folder(folder / "bundle", "old")
        with monkeypatch.context() as patch:
            steps = interrupting(patch, at)
            try:
                write_folder(folder / "bundle", "new")
            except KeyboardInterrupt:
                pass
            else:
                assert steps() < at
                break
        assert content_of(folder / "bundle") in ({"old"}, {"new"}), at
        tidy_up(folder, again=True)
        assert content_of(folder / "bundle") in ({"old"}, {"new"}), at
        assert hidden(folder) == []
    assert at > 8


KILLED = """
import os, signal, sys
from pathlib import Path
from s3diff_runtime import files
at, exchanges = int(sys.argv[2]), sys.argv[3] == "exchange"
steps = 0
def counted(original):
    def step(*given, **named):
        global steps
        steps += 1
        if steps == at: os.kill(os.getpid(), signal.SIGKILL)
        result = original(*given, **named)
        steps += 1
        if steps == at: os.kill(os.getpid(), signal.SIGKILL)
        return result
    return step
if not exchanges: files._exchange = lambda one, other: False
Path.mkdir, Path.replace = counted(Path.mkdir), counted(Path.replace)
for name in ("_locked", "_exchange", "_remove"): setattr(files, name, counted(getattr(files, name)))
with files.replacing(Path(sys.argv[1])) as folder:
    os.mkdir(folder)
    for number in range(3): (folder / f"{number}.txt").write_text("new")
"""


@pytest.mark.parametrize("exchanges", ["exchange", "two renames"])
def test_a_kill_at_any_step_loses_nothing_and_the_next_writer_tidies_up(
    tmp_path: Path, exchanges: str, caplog: pytest.LogCaptureFixture
) -> None:
    restored = 0
    for at in range(1, 40):
        folder = tmp_path / str(at)
        folder.mkdir()
        write_folder(folder / "bundle", "old")
        command = [sys.executable, "-c", KILLED, str(folder / "bundle"), str(at), exchanges]
        code = subprocess.run(command, check=False).returncode
        if code == 0:
            break
        assert code == -signal.SIGKILL
        restored += not (folder / "bundle").exists()
        tidy_up(folder, again=True)
        assert content_of(folder / "bundle") in ({"old"}, {"new"}), at
        assert hidden(folder) == []
        write_text(folder / "beside.txt", "goes on")
    assert at > 8
    assert restored == (0 if exchanges == "exchange" else 2)
    assert ("moved aside" in caplog.text) == bool(restored)


def test_what_a_living_writer_holds_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "one") as folder:
        folder.mkdir()
        tidy_up(tmp_path, again=True)
        assert folder.is_dir()
        write_text(tmp_path / "two", "beside")
    assert hidden(tmp_path) == []


def test_another_process_leaves_it_alone_too(tmp_path: Path) -> None:
    with replacing(tmp_path / "one") as folder:
        folder.mkdir()
        script = "import sys; from pathlib import Path; from s3diff_runtime.files import write_text\n"
        script += "write_text(Path(sys.argv[1]), 'text')"
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "two")], check=True)
        assert folder.is_dir()


def test_what_a_killed_writer_left_is_removed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".s3diff-0123456789abcdef.partial" / "new").mkdir(parents=True)
    (tmp_path / ".s3diff-notes").mkdir()  # not ours
    write_text(tmp_path / "text", "text")
    assert hidden(tmp_path) == [".s3diff-notes"]
    assert "which an interrupted run had left" in caplog.text


def test_writers_of_one_target_do_not_disturb_each_other(tmp_path: Path) -> None:
    target, texts = tmp_path / "text", [str(number) * 100_000 for number in range(8)]

    def write_often(text: str) -> None:
        for _ in range(20):
            write_text(target, text)

    threads = [threading.Thread(target=write_often, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if target.exists():
            assert target.read_text() in texts
    assert target.read_text() in texts
    assert hidden(tmp_path) == []


def test_processes_with_equal_numbers_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as the first process of every container
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_folder, args=(tmp_path / "bundle", str(n))) for n in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(content_of(tmp_path / "bundle")) == 1
    assert hidden(tmp_path) == []


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 251}.txt"
    write_text(path, "text")
    assert path.read_text() == "text"


def test_a_file_that_takes_the_place_of_a_link_replaces_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("real")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "real"
    assert (tmp_path / "link").read_text() == "new"


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "bundle", "old")
    with pytest.raises(JobError, match=r"could not write .*bundle: .*directory"):
        write_text(tmp_path / "bundle", "text")
    assert content_of(tmp_path / "bundle") == {"old"}
