"""Before a long job: real steps of the recipe on every rank with its longest rows, and what they say about the whole run.

vwlmm train RECIPE --check        (under the same launcher, with the same number of ranks, as the run itself)
"""

import copy
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainerCallback

from vwlmm import distributed
from vwlmm.config import Recipe
from vwlmm.sampler import lengths_and_modalities

STEPS = 3  # the first one warms up and is not timed
MEASURED_ROWS = 20_000  # lengths of larger data are estimated from as many rows, evenly spread


@dataclass
class Check:
    """What `check` measured.

    Attributes:
        processes: ranks that took part.
        memory: peak bytes of each rank: of its GPU, or of the process where there is none.
        memory_kind: `GPU` or `process`.
        memory_limit: bytes of a GPU, or of the machine.
        longest: tokens of the longest row that was found.
        tokens_per_second, images_per_second: of all ranks, in the timed steps.
        seconds_per_step: of an optimiser step with the longest rows.
        num_steps: of the whole run.
        mean_length: tokens of a row on average.
        rows_measured: rows whose length was looked at.
    """

    processes: int
    memory: list[int]
    memory_kind: str
    memory_limit: int
    longest: int
    tokens_per_second: float
    images_per_second: float
    seconds_per_step: float
    num_steps: int
    mean_length: float
    rows_measured: int

    @property
    def longest_time(self) -> float:
        """Seconds of the run if every step had the longest rows: an upper bound."""
        return self.seconds_per_step * self.num_steps

    @property
    def expected_time(self) -> float:
        """Seconds of the run, in proportion to tokens."""
        return self.longest_time * self.mean_length / self.longest

    def __str__(self) -> str:
        peak = max(self.memory)
        by_rank = ", ".join(f"{bytes_ / 2**30:.2f}" for bytes_ in self.memory[:16])
        return "\n".join(
            [
                f"{self.processes} processes took {STEPS} steps each with the longest rows ({self.longest} tokens).",
                f"memory: at most {peak / 2**30:.2f} of {self.memory_limit / 2**30:.1f} GiB a {self.memory_kind} "
                f"(by rank: {by_rank}{', …' if len(self.memory) > 16 else ''})",
                f"speed: {self.tokens_per_second:,.0f} tokens/s and {self.images_per_second:,.1f} images/s on all processes "
                f"together, {self.seconds_per_step:.2f} s a step",
                f"time: about {duration(self.expected_time)} for {self.num_steps:,} steps (rows have {self.mean_length:.0f} "
                f"tokens on average, of {self.rows_measured:,} looked at); {duration(self.longest_time)} if all were the "
                "longest. Validation, saving and reading pictures from a slow disk come on top.",
            ]
        )


def check(recipe: Recipe) -> Check:
    """Builds the run as it will be, takes a few steps with the longest rows, and leaves no file behind.

    Raises:
        ValueError: the recipe does not fit model, data or number of processes, as in a run.
        torch.OutOfMemoryError: the longest batch does not fit.
    """
    from vwlmm.training import arguments_of, make_trainer

    with tempfile.TemporaryDirectory() as folder:
        trial = _trial(recipe, folder)
        arguments = arguments_of(trial)
        trainer, _ = make_trainer(trial, arguments)
        dataset: Any = trainer.train_dataset
        rows_a_step = trainer.args.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        longest, lengths = _longest_rows(dataset, rows_a_step, arguments.process_index, arguments.world_size)
        if not longest:
            raise ValueError(
                f"{recipe.data.path}: no row that was looked at can be learned from: see `vwlmm data check`."
            )
        num_steps = _num_steps(recipe, dataset, rows_a_step)
        trainer.train_dataset = _Again(longest, STEPS)
        clock = _Clock(trainer)
        trainer.add_callback(clock)
        trainer.train()
        return _report(trainer, clock, lengths, num_steps)


def _trial(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with few steps, the rows in the order they are given, and nothing saved or sent to a tracker."""
    trial = copy.deepcopy(recipe)
    trial.training |= {
        "output_dir": folder,
        "max_steps": STEPS,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    trial.evaluation = None
    trial.data = dataclasses.replace(trial.data, num_workers=0)
    return trial


def _longest_rows(dataset: Any, number: int, rank: int, processes: int) -> tuple[list[Any], list[int]]:
    """Examples of the longest rows, as many as an optimiser step has, and the lengths that were looked at."""
    if isinstance(dataset, IterableDataset):
        first = [example for example in _first(dataset, max(number, 256)) if "bad_row" not in example]
        first.sort(key=lambda example: -len(example["input_ids"]))
        chosen = [first[n % len(first)] for n in range(number)] if first else []
        return chosen, [len(example["input_ids"]) for example in first]
    step = -(-len(dataset) // MEASURED_ROWS)
    some = _Some(dataset, range(0, len(dataset), step))
    lengths, _ = lengths_and_modalities(some, rank, processes)
    order = sorted(range(len(some)), key=lambda index: -lengths[index])
    chosen = []
    for index in (order[n % len(order)] for n in range(len(order) + number)):
        if len(chosen) < number:
            example = some[index]
            if "bad_row" not in example:
                chosen.append(example)
    return chosen, lengths


def _first(dataset: Any, number: int) -> Iterator[Any]:
    for count, example in enumerate(dataset):
        if count == number:
            return
        yield example


class _Some(Dataset):
    """Some rows of a dataset."""

    def __init__(self, dataset: Any, rows: range) -> None:
        self.dataset = dataset
        self.rows = rows
        self.encoder = dataset.encoder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.rows[index]]

    def encoded(self, index: int) -> Any:
        return self.dataset.encoded(self.rows[index])


class _Again(Dataset):
    """The same examples in every step."""

    def __init__(self, examples: list[Any], times: int) -> None:
        self.examples = examples
        self.times = times

    def __len__(self) -> int:
        return len(self.examples) * self.times

    def __getitem__(self, index: int) -> Any:
        return self.examples[index % len(self.examples)]


class _Clock(TrainerCallback):
    """Times the steps after the first and counts what they read."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.began = 0.0
        self.seconds = 0.0
        self.work: dict[str, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == 1:
            self.trainer.read_work()  # what the first step read does not count
            self.began = time.perf_counter()
        if state.global_step == STEPS:
            self.seconds = time.perf_counter() - self.began
            self.work = self.trainer.read_work()


def _num_steps(recipe: Recipe, dataset: Any, rows_a_step: int) -> int:
    steps = recipe.training.get("max_steps", -1)
    if steps > 0:
        return steps
    if isinstance(dataset, IterableDataset):
        raise ValueError("training.max_steps is needed for streamed rows, whose number is not known.")
    return max(1, round(recipe.training.get("num_train_epochs", 3) * -(-len(dataset) // rows_a_step)))


def _report(trainer: Any, clock: _Clock, lengths: list[int], num_steps: int) -> Check:
    on_gpu = torch.cuda.is_available()
    own = torch.cuda.max_memory_allocated() if on_gpu else _peak_of_process()
    slowest = max(seconds for [seconds] in distributed.gathered_lists([clock.seconds]))
    timed = STEPS - 1
    return Check(
        processes=trainer.args.world_size,
        memory=[peak for [peak] in distributed.gathered_lists([own])],
        memory_kind="GPU" if on_gpu else "process",
        memory_limit=torch.cuda.get_device_properties(0).total_memory if on_gpu else _memory_of_machine(),
        longest=max(lengths),
        tokens_per_second=clock.work.get("tokens", 0.0) / slowest,
        images_per_second=clock.work.get("images", 0.0) / slowest,
        seconds_per_step=slowest / timed,
        num_steps=num_steps,
        mean_length=sum(lengths) / len(lengths),
        rows_measured=len(lengths),
    )


def _peak_of_process() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _memory_of_machine() -> int:
    import psutil

    return psutil.virtual_memory().total


def duration(seconds: float) -> str:
    """A time as people say it: `45 s`, `12 min`, `5 h 20 min`, `3 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
