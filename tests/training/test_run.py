"""Run folders and the training loop: what is written, what is refused, and that resuming changes nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.training.tiny_runs import read_log
from torch import Tensor, nn

from s3diff_runtime.errors import CheckpointError, JobError, RequestError
from s3diff_training.train.loop import LoopOptions, Samples, TrainLoop
from s3diff_training.train.optimisers import TrainableModule
from s3diff_training.train.run import RunFolder

OPTIONS = LoopOptions(
    steps=11,
    batch=3,
    accumulate=2,
    lr=1e-2,
    schedule="cosine",
    lr_final=1e-4,
    warmup_fraction=0.2,
    ema_decay=0.9,
    log_every=3,
    save_every=4,
    sample_every=4,
    validate_every=2,
    keep=2,
    seed=5,
)


class Interrupted(Exception):
    """Stands for the power cut."""


class ToyTrainer:
    """A toy generator and discriminator, with dropout and spectral norm: all that a resume must restore."""

    product = "product.pt"

    def __init__(self, stop_at: int | None = None, poison_at: int | None = None) -> None:
        self.first = nn.Linear(4, 8)
        self.generator = nn.Sequential(self.first, nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4))
        self.discriminator = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
        self.first.bias.requires_grad_(False)
        self.stop_at, self.poison_at = stop_at, poison_at
        self.rates: list[float] = []

    @property
    def modules(self) -> Mapping[str, TrainableModule]:
        return {
            "generator": TrainableModule(self.generator),
            "discriminator": TrainableModule(self.discriminator, averaged=False),
        }

    def step(self, loop: TrainLoop) -> dict[str, float]:
        if loop.step == self.stop_at:
            raise Interrupted
        self.poisoned = loop.step == self.poison_at
        self.rates.append(loop.learning_rate)
        shape = (loop.options.accumulate, loop.options.batch, 4)
        batches = list(torch.randn(shape, generator=loop.generator))
        return {
            **loop.optimize("generator", batches, self.reconstruct),
            **loop.optimize("generator", batches, self.fool),
            **loop.optimize("discriminator", batches, self.tell_apart),
        }

    def reconstruct(self, x: Tensor) -> dict[str, Tensor]:
        error = self.generator(x) - x.flip(1)
        return {"l2": error.square().mean() * (math.nan if self.poisoned else 1), "l1": error.abs().mean()}

    def fool(self, x: Tensor) -> dict[str, Tensor]:
        return {"gan": -self.discriminator(self.generator(x)).mean()}

    def tell_apart(self, x: Tensor) -> dict[str, Tensor]:
        fake, real = self.discriminator(self.generator(x).detach()), self.discriminator(x)
        return {"discriminator": (fake - real).mean()}

    def sample(self, loop: TrainLoop) -> Samples:
        torch.rand(3)
        image = torch.rand(3, 8, 8, generator=loop.generator)  # draws that must not disturb the training
        return [[image]], ["toy"]

    def validate(self, loop: TrainLoop) -> dict[str, float]:
        x = torch.linspace(-1, 1, 4).expand(2, 4)
        return {"error": (self.generator(x) - x.flip(1)).square().mean().item(), "nothing": math.inf}

    def export(self, path: Path) -> None:
        torch.save({name: value.clone() for name, value in self.generator.state_dict().items()}, path)


def train(
    path: Path, options: LoopOptions = OPTIONS, on_existing: str = "refuse", **faults: int
) -> tuple[ToyTrainer, RunFolder]:
    loop = TrainLoop(options)
    trainer = ToyTrainer(**faults)
    return trainer, loop.run(trainer, path, {"weight": 2.0}, on_existing)  # type: ignore[arg-type]


def without_seconds(run: RunFolder) -> list[dict]:
    records = read_log(run, "losses")
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("stop_at", [2, 4, 9])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    whole_trainer, whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop_at=stop_at)
    torch.manual_seed(99)
    trainer, cut = train(tmp_path / "cut", on_existing="resume")
    assert without_seconds(cut) == without_seconds(whole)
    assert read_log(cut, "validation") == read_log(whole, "validation")
    for (name, value), expected in zip(
        [*trainer.generator.state_dict().items(), *trainer.discriminator.state_dict().items()],
        [*whole_trainer.generator.state_dict().values(), *whole_trainer.discriminator.state_dict().values()],
        strict=True,
    ):
        assert torch.equal(value, expected), name
    products = [torch.load(tmp_path / name / "product.pt") for name in ("whole", "cut")]
    assert all(torch.equal(products[0][name], products[1][name]) for name in products[0])


def test_logs_samples_and_validation_do_not_change_the_training(tmp_path: Path) -> None:
    seen, _ = train(tmp_path / "seen")
    unseen, _ = train(tmp_path / "unseen", OPTIONS.but(log_every=100, sample_every=0, validate_every=0))
    assert torch.equal(seen.first.weight, unseen.first.weight)


def test_run_folder_holds_what_it_promises(tmp_path: Path) -> None:
    trainer, run = train(tmp_path / "run")
    config = json.loads((run.path / "config.json").read_text())
    assert config["options"]["weight"] == 2.0
    assert config["options"]["loop"]["lr"] == 1e-2
    assert config["versions"]["torch"].startswith("2.")
    records = [json.loads(line) for line in (run.path / "losses.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [3, 6, 9, 11]
    assert records[-1].keys() == {"step", "seconds", "learning_rate", "losses"}
    assert list(records[-1]["losses"]) == ["l2", "l1", "gan", "discriminator"]
    assert records[0]["learning_rate"] == trainer.rates[2]
    assert [record["step"] for record in read_log(run, "validation")] == [2, 4, 6, 8, 10, 11]
    assert read_log(run, "validation")[0]["scores"]["nothing"] is None  # JSON has no infinity
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000008", "step-000011"]
    assert sorted(path.name for path in run.samples.iterdir()) == [
        "step-000004.png",
        "step-000008.png",
        "step-000011.png",
    ]
    assert records[-1]["losses"]["l2"] < records[0]["losses"]["l2"]


def test_product_is_the_average_and_training_goes_on_with_the_weights(tmp_path: Path) -> None:
    constant = OPTIONS.but(schedule="constant", warmup_fraction=0.0)
    options = constant.but(steps=2, save_every=1, ema_decay=0.15)
    weights = []

    class Watcher(ToyTrainer):
        def step(self, loop: TrainLoop) -> dict[str, float]:
            weights.append(self.first.weight.detach().clone())
            return super().step(loop)

        def export(self, path: Path) -> None:
            assert not self.generator.training
            super().export(path)

    loop = TrainLoop(options)
    trainer = Watcher()
    loop.run(trainer, tmp_path / "run")
    start, first, second = *weights, trainer.first.weight
    assert trainer.generator.training
    # Step 1 decays by min(0.15, 2/11), step 2 by min(0.15, 3/12).
    average = 0.15 * (0.15 * start + 0.85 * first) + 0.85 * second
    assert torch.allclose(torch.load(tmp_path / "run" / "product.pt")["0.weight"], average, atol=1e-7)


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    def after_one_update(accumulate: int) -> Tensor:
        unseen = OPTIONS.but(save_every=0, sample_every=0, validate_every=0)
        options = unseen.but(steps=1, accumulate=accumulate)
        loop = TrainLoop(options)
        model = nn.Linear(4, 4)
        x = torch.randn(8, 4, generator=loop.generator)

        class OneUpdate(ToyTrainer):
            @property
            def modules(self) -> Mapping[str, TrainableModule]:
                return {"model": TrainableModule(model)}

            def step(self, loop: TrainLoop) -> dict[str, float]:
                return loop.optimize("model", x.chunk(accumulate), lambda b: {"l2": model(b).square().mean()})

        loop.run(OneUpdate(), tmp_path / str(accumulate))
        return model.weight.detach()

    assert torch.allclose(after_one_update(4), after_one_update(1), atol=1e-6)


def test_other_modules_get_no_gradients(tmp_path: Path) -> None:
    class Watcher(ToyTrainer):
        def tell_apart(self, x: Tensor) -> dict[str, Tensor]:
            assert all(p.grad is None for p in self.generator.parameters())
            return super().tell_apart(x)

        def fool(self, x: Tensor) -> dict[str, Tensor]:
            assert all(p.grad is None for p in self.discriminator.parameters())
            return super().fool(x)

    trainer = Watcher()
    TrainLoop(OPTIONS).run(trainer, tmp_path / "run")
    assert not trainer.first.bias.requires_grad  # frozen before, frozen after
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


def test_loss_that_is_not_finite_names_step_and_term(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"step 7: the loss term 'l2' of generator is nan") as raised:
        train(tmp_path / "run", poison_at=6)
    assert raised.value.exit_code == 1
    _, run = train(tmp_path / "run", on_existing="resume")
    assert [record["step"] for record in read_log(run, "losses")] == [3, 6, 9, 11]


def test_failed_checkpoint_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = train(tmp_path / "run", OPTIONS.but(steps=4))
    before = run.load_checkpoint()

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(JobError, match="No space left"):
        run.save_checkpoint(5, {"x": 1}, keep=1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000004"]
    after = run.load_checkpoint()
    assert before is not None
    assert after is not None
    assert after[0] == before[0] == 4


def test_existing_run_is_refused_resumed_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(RequestError, match="no run to resume"):
        train(path, on_existing="resume")
    train(path)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="not empty"):
        train(path)
    _, run = train(path, OPTIONS.but(steps=3), on_existing="replace")
    assert [record["step"] for record in read_log(run, "losses")] == [3]
    assert [entry.name for entry in run.checkpoints.iterdir()] == ["step-000003"]
    file = path / "notes.txt"  # in the place of a folder
    for on_existing, message in (("refuse", "not empty"), ("replace", "holds no run")):
        with pytest.raises(RequestError, match=message):
            train(file, on_existing=on_existing)
    assert file.read_text() == "mine"


def test_resuming_names_every_option_that_differs(tmp_path: Path) -> None:
    train(tmp_path / "run")
    changed = OPTIONS.but(lr=3e-2, seed=6, steps=20, save_every=1, threads=1)
    with pytest.raises(RequestError) as raised:
        TrainLoop(changed).run(ToyTrainer(), tmp_path / "run", {"weight": 3.0}, "resume")
    message = str(raised.value)
    assert "loop.lr was 0.01 and is 0.03" in message
    assert "weight was 2.0 and is 3.0" in message
    assert "loop.seed" in message
    assert "loop.steps" in message  # the cosine schedule depends on it
    assert "save_every" not in message
    assert "threads" not in message


def test_constant_schedule_may_be_extended(tmp_path: Path) -> None:
    options = OPTIONS.but(schedule="constant", warmup_fraction=0.0, steps=4)
    train(tmp_path / "run", options)
    trainer, _ = train(tmp_path / "run", options.but(steps=8), on_existing="resume")
    straight, _ = train(tmp_path / "straight", options.but(steps=8))
    assert torch.equal(trainer.first.weight, straight.first.weight)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    _, run = train(tmp_path / "run", OPTIONS.but(steps=4))

    class Other(ToyTrainer):
        @property
        def modules(self) -> Mapping[str, TrainableModule]:
            return {
                "generator": TrainableModule(nn.Linear(2, 2)),
                "discriminator": TrainableModule(self.discriminator),
            }

    with pytest.raises(CheckpointError, match="generator"):
        TrainLoop(OPTIONS.but(steps=4)).run(Other(), run.path, {"weight": 2.0}, "resume")
    (run.checkpoints / "step-000004" / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="step-000004"):
        train(run.path, OPTIONS.but(steps=4), on_existing="resume")


def test_torn_log_line_is_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.open({})
    for step in (1, 2, 3):
        run.log("losses", {"step": step})
    with (run.path / "losses.jsonl").open("a") as file:
        file.write('{"step": 4, "los')
    run.rewind(2)
    assert read_log(run, "losses") == [{"step": 1}, {"step": 2}]
    run.log("losses", {"step": 3})
    assert len((run.path / "losses.jsonl").read_text().splitlines()) == 3


def test_wrong_options_are_reported_at_once() -> None:
    with pytest.raises(RequestError) as raised:
        LoopOptions(steps=0, lr=0.0, ema_decay=1.0, schedule="linear", warmup_fraction=-1, threads=0)  # type: ignore[arg-type]
    for name in ("steps", "lr", "ema_decay", "schedule", "warmup_fraction", "threads"):
        assert f"{name} is" in str(raised.value)


def test_schedule_rises_then_falls_to_its_end() -> None:
    options = LoopOptions(steps=100, lr=1.0, schedule="cosine", lr_final=0.1, warmup_fraction=0.1)
    rates = [options.learning_rate(options.progress(step, 0.0)) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert {LoopOptions(lr=0.5).learning_rate(progress) for progress in (0, 0.5, 0.9999)} == {0.5}


def test_a_run_by_the_clock_ends_with_its_minutes_and_its_schedule(tmp_path: Path) -> None:
    quiet = LoopOptions(minutes=0.5 / 60, accumulate=OPTIONS.accumulate, schedule="cosine", save_every=10**6)
    options = quiet.but(log_every=1, sample_every=0, validate_every=0)
    trainer, run = train(tmp_path / "run", options)
    records = read_log(run, "losses")
    assert records[-2]["seconds"] <= 0.5 <= records[-1]["seconds"]  # which are rounded
    assert len(records) > 1
    assert trainer.rates[-1] < 0.2 * max(trainer.rates)
    assert (run.path / "product.pt").exists()


def test_minutes_and_steps_are_refused_together() -> None:
    with pytest.raises(RequestError, match="--minutes and --steps"):
        LoopOptions(minutes=1.0, steps=5)


def test_channels_last_is_another_order_of_the_same_weights(tmp_path: Path) -> None:
    model = nn.Conv2d(4, 4, 3)
    before = model.weight.detach().clone()

    class Convolution(ToyTrainer):
        @property
        def modules(self) -> Mapping[str, TrainableModule]:
            return {"model": TrainableModule(model)}

        def step(self, loop: TrainLoop) -> dict[str, float]:
            assert torch.equal(model.weight, before)
            return {}

    unseen = LoopOptions(steps=1, save_every=0, sample_every=0, validate_every=0, channels_last=True)
    TrainLoop(unseen).run(Convolution(), tmp_path / "run")
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_processes_train_the_same_weights(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, __file__, str(tmp_path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    for mine, other in zip(first, second, strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    state = RunFolder(tmp_path / "run").load_checkpoint()
    assert state is not None
    own, other = (process["random"][0] for process in state[1]["processes"])
    assert not torch.equal(own, other)  # each drew its own crops


def _train_on_this_process(folder: Path) -> None:
    loop = TrainLoop(OPTIONS)
    trainer = ToyTrainer()
    loop.run(trainer, folder / "run")
    weights = [trainer.generator.state_dict(), trainer.discriminator.state_dict()]
    torch.save(weights, folder / f"rank-{loop.accelerator.process_index}.pt")


if __name__ == "__main__":
    _train_on_this_process(Path(sys.argv[1]))
