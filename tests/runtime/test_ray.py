"""Batches on workers of Ray: shared out, isolated, survived; on two actors of a cluster on this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image
from tests.runtime.fake_bundle import dark_noise, enlarged, write_fake_bundle
from tests.runtime.stores import Bucket, s3_server

from s3diff_export import cli
from s3diff_runtime.batch.jobs import Job
from s3diff_runtime.batch.run import BatchOptions
from s3diff_runtime.command_line import Member
from s3diff_runtime.errors import BundleError, JobError, RequestError
from s3diff_runtime.serving import ray_batch
from s3diff_runtime.serving.ray import Answer, UpscaleFiles
from s3diff_runtime.serving.ray_batch import Resources
from s3diff_runtime.settings import PictureSettings

ROOT = cli.RootGroup({"upscale": Member("s3diff_runtime.batch.upscaling:run_upscale", "Upscale.", "cpu")})
EXACT = ("--noise", "0", "--blur", "0", "--color-fix", "none", "--engine", "onnx")
PICTURES = 24


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle", "dynamic")


@pytest.fixture(scope="module")
def store() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as environment, s3_server(environment) as bucket:
        yield bucket


@pytest.fixture(scope="module")
def cluster(store: Bucket) -> Iterator[None]:
    """A cluster of two CPUs, whose workers know the store."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20
    )
    yield
    ray.shutdown()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Path:
    """The working folder: pictures in `in`, and one file that is none; a bundle in the environment."""
    (tmp_path / "in").mkdir()
    for number in range(PICTURES):
        Image.fromarray(picture(number)).save(tmp_path / "in" / f"{number:02}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"not a picture")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("S3DIFF_BUNDLE", str(bundle))
    return tmp_path


def picture(number: int) -> np.ndarray:
    return dark_noise(120, 128, seed=number)


def upscale(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(ROOT, ["upscale", *arguments, *EXACT])
    captured = capsys.readouterr()
    lines = [
        line for line in captured.out.splitlines() if "(raylet)" not in line
    ]  # Ray's own word of a death
    return code, "\n".join(lines), captured.err


def workers() -> list[int]:
    """The processes of this test's workers that are busy with a share."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = []
    for process, name in names.items():
        above = process
        while above not in (0, os.getpid()):
            above = parents.get(above, 0)
        if above and name.startswith(b"ray::UpscaleFiles.upscale"):
            found.append(process)
    return found


def kill_one_once(ready: Callable[[], bool]) -> threading.Thread:
    """Kill a worker in the middle of a share, as soon as something holds."""

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if ready() and (busy := workers()):
                os.kill(busy[0], signal.SIGKILL)
                return
            time.sleep(0.01)
        raise AssertionError("no worker to kill")

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}


# --- on a cluster ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
def test_killed_worker_loses_nothing_and_a_resume_does_nothing_twice(
    photos: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ("in", "-o", "out", "--ray", "--workers", "2", "--batch", "1", "--report", "r.json")
    killer = kill_one_once(lambda: len(written(photos / "out")) > 2)
    code, out, err = upscale(capsys, *arguments)
    killer.join()
    assert "a worker died, and what it had begun is done again" in caplog.text
    assert code == 1
    assert out.startswith(f"{PICTURES} upscaled in ")
    assert err.splitlines()[0].startswith("failed: ")
    assert "bad.png is not a PNG" in err.splitlines()[0]
    report = json.loads(Path("r.json").read_text())
    assert (report["engine"], report["device"]) == ("onnx", "cpu,cpu")
    assert report["counts"] == {"done": PICTURES, "skipped": 0, "failed": 1, "not done": 0}
    assert [entry["input"] for entry in report["images"]] == [
        *(f"in/{number:02}.png" for number in range(PICTURES)),
        "in/bad.png",
    ]
    assert {"read", "unet", "write"} <= set(report["images"][0]["seconds"])
    for number in range(PICTURES):
        with Image.open(f"out/{number:02}.png") as image:
            assert np.array_equal(np.asarray(image), enlarged(picture(number)))
    before = written(Path("out"))
    Path("out/07.png").unlink()
    assert upscale(capsys, *arguments, "--resume")[1].split(", ")[1] == f"{PICTURES - 1} skipped"
    after = written(Path("out"))
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == ["07.png"]
    # What the killed one was writing is removed by whoever writes next into the folder, with a new process.
    assert {path.name for path in Path("out").iterdir()} == after.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_pictures_of_a_store_survive_a_killed_worker(
    photos: Path, store: Bucket, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.empty()
    for number in range(PICTURES):
        store.put(f"in/{number % 3}/{number:02}.png", picture(number))
    for path in bundle.rglob("*"):
        if path.is_file():
            store.put(f"bundle/{path.relative_to(bundle).as_posix()}", path.read_bytes())
    arguments = ("s3://photos/in", "-o", "s3://photos/out", "--ray", "--batch", "1", "--workers", "2")
    named = ("--bundle", "s3://photos/bundle", "--report", "s3://photos/r.json")
    killer = kill_one_once(lambda: len(store.keys("out/")) > 2)
    code, out, err = upscale(capsys, *arguments, *named)
    killer.join()
    assert code == 0, err
    assert out.startswith(f"{PICTURES} upscaled in ")
    results = {f"out/{number % 3}/{number:02}.png" for number in range(PICTURES)}
    assert store.keys("out/").keys() == results
    assert np.array_equal(store.picture("out/1/07.png"), enlarged(picture(7)))
    assert json.loads(store.get("r.json"))["counts"]["done"] == PICTURES
    store.delete("out/1/07.png")
    code, out, _ = upscale(capsys, *arguments, *named, "--resume")
    assert (code, out.split(", ")[1].strip()) == (0, f"{PICTURES - 1} skipped")
    assert store.keys("out/").keys() == results


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_picture_that_kills_workers_costs_itself_alone(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class UpscaleFilesUnlessPoisoned(UpscaleFiles):
        def upscale(self, jobs: Sequence[Job], options: BatchOptions | None = None) -> Answer:
            if any("05" in str(job.source) for job in jobs):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().upscale(jobs, options)

    monkeypatch.setattr(ray_batch, "UpscaleFiles", UpscaleFilesUnlessPoisoned)
    code, out, err = upscale(capsys, "in", "-o", "out", "--ray", "--workers", "2", "--batch", "4")
    assert code == 1
    assert out.startswith(f"{PICTURES - 1} upscaled in ")
    assert ", 2 failed" in out
    assert "failed: 3 workers died of it, one after the other; see Ray's logs" in err
    assert not Path("out/05.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_workers_that_die_of_everything_end_the_batch(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class DyingFiles(UpscaleFiles):
        def upscale(self, jobs: Sequence[Job], options: BatchOptions | None = None) -> Answer:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    monkeypatch.setattr(ray_batch, "UpscaleFiles", DyingFiles)
    monkeypatch.setattr(ray_batch, "_MOST_GIVEN_UP", 1)
    code, _, err = upscale(capsys, "in", "-o", "out", "--ray", "--workers", "2", "--report", "r.json")
    assert code == 1
    assert "workers die of whatever they are given" in err
    assert json.loads(Path("r.json").read_text())["counts"]["done"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_full_store_ends_the_batch_and_the_bundle_must_be_everywhere(
    photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullFiles(UpscaleFiles):
        def upscale(self, jobs: Sequence[Job], options: BatchOptions | None = None) -> Answer:
            answer = super().upscale(jobs[:1], options)
            rest = [outcome for outcome in answer.outcomes for _ in jobs]
            return Answer(rest, answer.seconds, JobError("no space left; stopped"))

    class FilesElsewhere(UpscaleFiles):
        def describe(self) -> tuple[str, str, str]:
            self._bundle = "elsewhere"
            return super().describe()

    for kind, told in ((FullFiles, "no space left; stopped"), (FilesElsewhere, "elsewhere is no bundle on")):
        monkeypatch.setattr(ray_batch, "UpscaleFiles", kind)
        code, _, err = upscale(capsys, "in", "-o", f"out-{kind.__name__}", "--ray", "--workers", "2")
        assert code != 0
        assert told in err
        assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_map_batches_gives_rows_of_outcomes(photos: Path, bundle: Path) -> None:
    import ray.data

    rows = [{"input": str(path), "output": str(photos / "out" / path.name)} for path in photos.glob("in/*")]
    settings = BatchOptions(PictureSettings(noise=0, blur=0, color_fix="none"))
    done = ray.data.from_items(rows, override_num_blocks=5).map_batches(
        UpscaleFiles,
        fn_constructor_args=(str(bundle), settings, "onnx"),
        batch_size=8,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    outcomes = {Path(row["input"]).name: row for row in done.take_all()}
    assert len(outcomes) == PICTURES + 1
    assert outcomes.pop("bad.png")["status"] == "failed"
    assert {row["status"] for row in outcomes.values()} == {"done"}
    assert json.loads(outcomes["07.png"]["report"])["output_size"] == [512, 480]
    with Image.open("out/07.png") as image:
        assert np.array_equal(np.asarray(image), enlarged(picture(7)))


# --- without one ----------------------------------------------------------------------------------


def test_rows_are_upscaled_and_failures_are_rows(photos: Path, bundle: Path) -> None:
    worker = UpscaleFiles(bundle, BatchOptions(PictureSettings(noise=0, blur=0, color_fix="none")), "onnx")
    inputs = np.array(["in/00.png", "in/bad.png", "in/01.png"])
    rows = worker({"input": inputs, "output": np.array(["out/a.png", "out/b.png", "out/c.nope"])})
    assert list(rows["status"]) == ["done", "failed", "failed"]
    assert [bool(error) for error in rows["error"]] == [False, True, True]
    assert json.loads(rows["report"][0])["input_size"] == [128, 120]
    with Image.open("out/a.png") as image:
        assert np.array_equal(np.asarray(image), enlarged(picture(0)))


def test_workers_open_the_very_bundle(bundle: Path) -> None:
    assert UpscaleFiles(bundle, engine="onnx").describe() == ("onnx", "cpu", "fp32")
    with pytest.raises(BundleError, match=r"is another bundle \(manifest .*, expected 000000000000…\)"):
        UpscaleFiles(bundle, manifest="0" * 64).describe()
    with pytest.raises(BundleError, match=r"nowhere is no bundle on .*; name one that every machine has"):
        UpscaleFiles("nowhere").describe()


@pytest.mark.parametrize(
    ("nodes", "asked", "threads", "device", "expected"),
    [
        ([{"CPU": 2}], None, None, "cpu", (1, 2, 0)),
        ([{"CPU": 2}], 2, None, "cpu", (2, 1, 0)),
        ([{"CPU": 16}, {"CPU": 6}], None, None, "cpu", (5, 4, 0)),
        ([{"CPU": 16}, {"CPU": 6}], 2, None, "cpu", (2, 8, 0)),
        ([{"CPU": 3}, {"CPU": 3}], 3, None, "cpu", (3, 1, 0)),
        ([{"CPU": 16}], None, 2, "cpu", (8, 2, 0)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 8}], None, None, "cuda", (4, 1, 1)),
        ([{"CPU": 8, "GPU": 4}], 3, 2, "cuda", (3, 1, 1)),
        ([{"CPU": 2}], 3, None, "cpu", "has nodes of 2 CPUs, room for 2 workers of 1; 3 are needed"),
        ([{"CPU": 2}], None, 4, "cpu", "has nodes of 2 CPUs, room for 0 workers of 4; 1 is needed"),
        ([], None, None, "cpu", "has nodes of no CPUs, room for 0 workers of 1; 1 is needed"),
        ([{"CPU": 2}], None, None, "cuda", "has 0 GPUs, and 1 workers need one each"),
    ],
)  # fmt: skip
def test_workers_have_room_for_each_other(
    nodes: list[dict[str, float]],
    asked: int | None,
    threads: int | None,
    device: str,
    expected: tuple[int, int, int] | str,
) -> None:
    if isinstance(expected, str):
        with pytest.raises(RequestError, match=expected):
            Resources.settle(nodes, asked, threads, device)
    else:
        found = Resources.settle(nodes, asked, threads, device)
        assert (found.workers, found.cores, found.gpus) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "2"), "--workers without --ray: nothing is shared out"),
        (("--ray-address", "auto"), "--ray-address without --ray: nothing is shared out"),
        (("--ray", "--device", "cuda:1"), "--device cuda:1 with --ray, which gives each worker its GPU"),
    ],
)
def test_options_that_do_not_fit(
    photos: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = upscale(capsys, "in", "-o", "out", *arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "no address"])
def test_cluster_that_does_not_answer(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    code, _, err = upscale(capsys, "in", "-o", "out", "--ray", "--ray-address", address)
    assert code == 2
    assert err.startswith(f"error: no Ray cluster answers at {address}: ")


def test_missing_library_names_the_extra(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "s3diff_runtime.serving.ray_batch")
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = upscale(capsys, "in", "-o", "out", "--ray")
    assert (code, err) == (2, "error: ray is not installed: pip install 's3diff-export[ray]'\n")
