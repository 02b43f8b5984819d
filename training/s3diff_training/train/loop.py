"""The training loop that all three trainers share: steps, schedule, averages, logs, checkpoints, resuming.

Several GPUs, mixed precision and gradient accumulation go through `accelerate`: `accelerate launch` starts a
run on several GPUs. Every process draws its own crops; gradients are averaged before each update.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from s3diff_runtime.errors import CheckpointError, JobError, RequestError
from s3diff_runtime.options import Options, option
from s3diff_training.data import contact_sheet
from s3diff_training.train.optimisers import OptimisedModule, TrainableModule
from s3diff_training.train.run import OnExisting, RunFolder

Schedule = Literal["constant", "cosine"]
MixedPrecision = Literal["no", "bf16"]
Batch = TypeVar("Batch")
Samples = tuple[Sequence[Sequence[Tensor]], Sequence[str]]
"""What a trainer shows of its work: rows of images `[3, H, W]` in [0, 1], and one caption per column."""
_LOG = logging.getLogger(__name__)
_PLAIN_INTERVAL = 30.0  # seconds
_WHOLE = 10_000  # parts of a progress bar


@dataclass(frozen=True)
class LoopOptions(Options):
    """How long, how fast and how often. The defaults are the released training's (FACTS)."""

    steps: int = option(30_000, "Updates in all.", least=1)
    minutes: float | None = option(
        None, "End after so many minutes of training, not after --steps; the schedule goes by them.", above=0
    )
    batch: int = option(4, "Images of a micro-batch, on each process.", least=1)
    accumulate: int = option(4, "Micro-batches of an update.", least=1)
    lr: float = option(2e-5, "Learning rate.", above=0)
    schedule: Schedule = option("constant", "How the learning rate goes on after the warm-up.")
    lr_final: float = option(0.0, "Where the cosine schedule ends.", least=0)
    warmup_fraction: float = option(
        0.0, "Fraction of the steps over which the learning rate rises from 0.", least=0, below=1
    )
    grad_clip: float = option(1.0, "Largest norm of a module's gradient; 0 does not clip.", least=0)
    ema_decay: float = option(
        0.0, "Decay of the weights' moving average, which becomes the result; 0 keeps none.", least=0, below=1
    )
    log_every: int = option(10, "Steps between lines of losses.jsonl.", least=1)
    save_every: int = option(500, "Steps between checkpoints; 0 never writes one, nor the result.", least=0)
    sample_every: int = option(500, "Steps between sheets of sample images; 0 never draws one.", least=0)
    validate_every: int = option(500, "Steps between validations; 0 never validates.", least=0)
    keep: int = option(3, "Checkpoints that stay.", least=1)
    seed: int = option(0, "Of weights, crops and degradations.", least=0)
    # No fp16: the step to x0 multiplies errors by 14.6, and without its loss scaling runs resume exactly.
    mixed_precision: MixedPrecision = option("no", "bf16 computes in bfloat16 where torch's autocast does.")
    channels_last: bool = option(False, "Keep weights and activations of convolutions channels last.")
    threads: int | None = option(None, "CPU threads; torch's choice by default.", least=1)

    def problems(self) -> Iterator[str]:
        """Two ends."""
        if self.minutes is not None and "steps" in self.given:
            yield "--minutes and --steps both say when to end; pass one of them"

    def progress(self, step: int, seconds: float) -> float:
        """How much of the run is done, 0 to 1, after so many steps and seconds of training."""
        return step / self.steps if self.minutes is None else min(seconds / (60 * self.minutes), 1.0)

    def learning_rate(self, progress: float) -> float:
        """The learning rate of the next step when `progress` (0 to 1) of the run is done."""
        if progress < self.warmup_fraction:
            return self.lr * min((progress + 1 / self.steps) / self.warmup_fraction, 1.0)
        if self.schedule == "constant":
            return self.lr
        through = (progress - self.warmup_fraction) / (1 - self.warmup_fraction)
        return self.lr_final + (self.lr - self.lr_final) * (1 + math.cos(math.pi * through)) / 2

    @property
    def changeable(self) -> frozenset[str]:
        """Names of the options that a resumed run may change, because the weights do not depend on them."""
        names = {"log_every", "save_every", "sample_every", "validate_every", "keep", "threads"}
        if self.schedule == "constant" and self.warmup_fraction == 0:
            names.update(("steps", "minutes"))
        return frozenset(names)


class Trainer(Protocol):
    """What is trained. The loop calls `step` for every step.

    `sample`, `validate` and `export` run on the main process alone, inside `loop.averaged()`.
    """

    product: str
    """Name of what `export` writes into the run folder: a checkpoint file or a base folder."""

    @property
    def modules(self) -> Mapping[str, TrainableModule]:
        """The modules to train, each with its own optimiser, by name. The loop moves them to its device."""

    def step(self, loop: "TrainLoop") -> Mapping[str, float]:
        """One step: draw with `loop.generator`, call `loop.optimize` once or more, return named losses."""

    def sample(self, loop: "TrainLoop") -> Samples:
        """Images for the contact sheet."""

    def validate(self, loop: "TrainLoop") -> Mapping[str, float]:
        """Named scores on held-out images."""

    def export(self, path: Path) -> None:
        """Write the product to `path`, atomically, replacing an earlier one."""


class TrainLoop:
    """Runs a `Trainer` from its first step, or from the newest checkpoint, to its last.

    Resuming continues as if the run had never stopped: on the CPU to the same bits, provided that the trainer
    keeps no state outside its trained modules.

    Attributes:
        options: of the loop.
        device: where the trained modules live and where trainers put their frozen ones and their batches.
        entropy: what this process's random numbers follow from.
        generator: on the CPU, this process's own.
        step: steps done.
        progress: how much of the run is done, 0 to 1.
        learning_rate: of the step that is being done.
    """

    def __init__(self, options: LoopOptions) -> None:
        """Set threads and seeds; create the trainer afterwards, so that its weights follow the seed."""
        if options.threads:
            torch.set_num_threads(options.threads)
        self.options = options
        self.accelerator = Accelerator(
            gradient_accumulation_steps=options.accumulate, mixed_precision=options.mixed_precision
        )
        self.device: torch.device = self.accelerator.device
        self.entropy = (options.seed, self.accelerator.process_index)
        seeds = np.random.SeedSequence(self.entropy).generate_state(2).tolist()
        self._own_seed = seeds[0]
        torch.manual_seed(options.seed)
        self.generator = torch.Generator().manual_seed(seeds[1])
        self.step, self.progress, self.learning_rate = 0, 0.0, 0.0
        self._generators = [self.generator, torch.default_generator]  # dropout's
        if self.device.type != "cpu":
            place = torch.cuda.current_device()  # initialises CUDA, which makes its generators
            self._generators.append(torch.cuda.default_generators[place])
        self._seconds = 0.0
        self._unlogged: list[dict[str, float]] = []
        self._modules: dict[str, OptimisedModule] = {}

    def run(
        self,
        trainer: Trainer,
        path: Path,
        config: Mapping[str, Any] | None = None,
        on_existing: OnExisting = "refuse",
        changeable: Collection[str] = (),
    ) -> RunFolder:
        """Train to the last step, writing the run folder `path`, and the product into it at every save.

        Args:
            trainer, path: what is trained, and the run folder.
            config: the trainer's options (JSON types), recorded and, on resuming, compared with the earlier.
            on_existing: see `RunFolder.open`.
            changeable: names of options in `config` that may differ on resuming.

        Raises:
            RequestError: for a run folder that is in the way or was started with other options.
            JobError: when a loss is not finite, naming step and term, or the disk refuses.
        """
        main, folder = self.accelerator.is_main_process, RunFolder(path)
        if main:
            options = {**(config or {}), "loop": asdict(self.options)}
            options["processes"] = self.accelerator.num_processes
            of_loop = {f"loop.{name}" for name in self.options.changeable}
            folder.open(options, on_existing, of_loop.union(changeable))
        self.accelerator.wait_for_everyone()
        decay = self.options.ema_decay
        self._modules = {
            name: OptimisedModule(name, module, self.accelerator, decay, self.options.channels_last)
            for name, module in trainer.modules.items()
        }
        torch.manual_seed(self._own_seed)  # from here on processes differ, in dropout for example
        if on_existing == "resume":
            self._resume(folder)
        self.progress = self.options.progress(self.step, self._seconds)
        with _progress(self.step, self.progress) if main else nullcontext() as show:
            while self.progress < 1:
                began = time.monotonic()
                self.learning_rate = self.options.learning_rate(self.progress)
                losses = dict(trainer.step(self))
                self.step += 1
                for module in self._modules.values():
                    module.update_average(self.step)
                self._seconds = self._agreed(self._seconds + time.monotonic() - began)
                self.progress = self.options.progress(self.step, self._seconds)
                self._unlogged.append(losses)
                if show:
                    show(self.step, self.progress, _means(self._unlogged))
                self._after_step(trainer, folder)
        return folder

    def optimize(
        self, name: str, batches: Sequence[Batch], losses: Callable[[Batch], Mapping[str, Tensor]]
    ) -> dict[str, float]:
        """One update of the trained module `name`: accumulate over the micro-batches, average, clip, step.

        The other trained modules get no gradients meanwhile, so a generator's loss may run through the
        discriminator and the reverse. Gradients are means over the micro-batches, as for one large batch.

        Args:
            name: of the module in `Trainer.modules`.
            batches: `options.accumulate` micro-batches, of any kind.
            losses: named loss terms (scalars, weights already applied) of a micro-batch; their sum is
                minimised. Runs under mixed precision where that is on.

        Returns:
            The mean of every term over the micro-batches.

        Raises:
            JobError: when a term is not finite, naming it and the step; the weights are left as they were.
        """
        expected = self.options.accumulate
        if len(batches) != expected:
            raise RequestError(f"optimize got {len(batches)} micro-batches; accumulate is {expected}")
        module = self._modules[name]
        values = []
        with module.only_trained(list(self._modules.values())):
            for batch in batches:
                with self.accelerator.autocast():
                    terms = losses(batch)
                values.append(self._finite(name, terms))
                self.accelerator.backward(torch.stack([term.float() for term in terms.values()]).sum())
        module.step(self.learning_rate, self.options.grad_clip)
        return _means(values)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """To look at the work: averaged weights, evaluation mode, no gradients, random states kept."""
        with ExitStack() as stack:
            for module in self._modules.values():
                stack.enter_context(module.in_use())
            states = [generator.get_state() for generator in self._generators]
            stack.enter_context(torch.no_grad())
            try:
                yield
            finally:
                self._set_random_states(states)

    def _finite(self, name: str, terms: Mapping[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack([term.detach().float() for term in terms.values()])
        values: dict[str, float] = dict(zip(terms, stacked.tolist(), strict=True))
        for term, value in values.items():
            if not math.isfinite(value):
                raise JobError(
                    f"step {self.step + 1}: the loss term {term!r} of {name} is {value}, expected a finite "
                    "number; lower the learning rate or look at the data, then resume"
                )
        return values

    def _after_step(self, trainer: Trainer, folder: RunFolder) -> None:
        options = self.options
        if self._due(options.log_every):
            self._log_losses(folder)
        if self.accelerator.is_main_process and self._due(options.sample_every):
            with self.averaged():
                samples = trainer.sample(self)
            contact_sheet(*samples, folder.samples / f"step-{self.step:06d}.png")
        if self.accelerator.is_main_process and self._due(options.validate_every):
            with self.averaged():
                scores = trainer.validate(self)
            finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
            folder.log("validation", {"step": self.step, "scores": finite})
        if self._due(options.save_every):
            self._save(folder)
            if self.accelerator.is_main_process:
                with self.averaged():
                    trainer.export(folder.path / trainer.product)
        self.accelerator.wait_for_everyone()

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.progress >= 1)

    def _agreed(self, seconds: float) -> float:
        """The main process's clock, where several go by it: they have to end together."""
        if self.options.minutes is None or self.accelerator.num_processes == 1:
            return seconds
        return float(broadcast(torch.tensor(seconds, device=self.device)))

    def _log_losses(self, folder: RunFolder) -> None:
        """One line: means over the steps since the last line and over the processes."""
        means = _means(gather_object([_means(self._unlogged)]))
        self._unlogged = []
        if self.accelerator.is_main_process:
            record = {
                "step": self.step,
                "seconds": round(self._seconds, 3),
                "learning_rate": self.learning_rate,
                "losses": means,
            }
            folder.log("losses", record)

    def _save(self, folder: RunFolder) -> None:
        states = [generator.get_state() for generator in self._generators]
        own = {"random": states, "unlogged": self._unlogged}
        processes = gather_object([own])
        if self.accelerator.is_main_process:
            state = {
                "seconds": self._seconds,
                "processes": processes,
                "modules": {name: module.state() for name, module in self._modules.items()},
            }
            folder.save_checkpoint(self.step, state, self.options.keep)

    def _resume(self, folder: RunFolder) -> None:
        checkpoint = folder.load_checkpoint()
        if checkpoint is not None:
            self.step, state = checkpoint
            found, expected = sorted(state["modules"]), sorted(self._modules)
            if found != expected:
                raise CheckpointError(
                    f"the checkpoint trains {', '.join(found)}; expected {', '.join(expected)}"
                )
            for name, module in self._modules.items():
                module.load_state(state["modules"][name])
            own = state["processes"][self.accelerator.process_index]
            self._unlogged, self._seconds = own["unlogged"], state["seconds"]
            self._set_random_states(own["random"])
        if self.accelerator.is_main_process:
            folder.rewind(self.step)
        self.accelerator.wait_for_everyone()

    def _set_random_states(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def _progress(start: int, before: float) -> Iterator[Callable[[int, float, Mapping[str, float]], None]]:
    """A progress bar on a terminal, a log line now and then elsewhere, of a run that has done `start` steps.

    `before` is its progress then. Yields a function to call when a step is done, with the steps, the progress
    and the means of the losses since the last logged ones.
    """
    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(
        *columns, TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal
    )
    task = bar.add_task("training", total=_WHOLE, completed=round(before * _WHOLE), note="")
    began = spoke = time.monotonic()

    def done(step: int, progress: float, losses: Mapping[str, float]) -> None:
        nonlocal spoke
        now = time.monotonic()
        rate = (step - start) / max(now - began, 1e-9)
        means = (f"{name} {value:.4f}" for name, value in losses.items())
        note = "  ".join([f"step {step}", f"{rate:.2f} steps/s", *means])
        bar.update(task, completed=progress * _WHOLE, note=note)
        if bar.disable and (now - spoke >= _PLAIN_INTERVAL or progress >= 1):
            spoke = now
            minutes = (1 - progress) * (now - began) / max(progress - before, 1e-9) / 60
            _LOG.info("%.0f %% done, %.0f min left, %s", 100 * progress, minutes, note)

    with bar:
        yield done


def _means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every name over the records that have it, in order of first appearance."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: float(np.mean([record[name] for record in records if name in record])) for name in names}
