"""Which checkpoint a run goes on from, and whether it fits: the same sharding, and other ranks where nothing is lost by it.

A checkpoint of ZeRO-1 or 2 is turned into DeepSpeed's universal form for another number of ranks. One of ZeRO-3 is not: its
universal form forgets how many steps Adam has taken, and the run would go on a little differently without saying so.
"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from vwlmm.checkpoints import last_whole_checkpoint, read_marker
from vwlmm.distributed import agreed

logger = logging.getLogger(__name__)


def checkpoint_to_resume(training: dict[str, Any], arguments: TrainingArguments) -> Path | None:
    """The last whole checkpoint under `training.resume: auto`, fit for this run; None for a run from the start.

    Raises:
        ValueError: it was written with other sharding, or by another number of ranks where that cannot be taken over.
    """
    if training.get("resume", "auto") != "auto":
        return None

    def find() -> tuple[Path | None, bool]:
        checkpoint = last_whole_checkpoint(Path(training["output_dir"]))
        if checkpoint is None:
            return None, False
        is_universal = _fit(checkpoint, arguments)
        logger.warning("going on from %s", checkpoint)
        return checkpoint, is_universal

    checkpoint, is_universal = agreed(find)
    if is_universal:
        arguments.hf_deepspeed_config.config.setdefault("checkpoint", {})["load_universal"] = True
    return checkpoint


def sharding(arguments: TrainingArguments) -> str:
    """How a run spreads weights and optimiser: `none`, `zero1` … `zero3` or `fsdp`."""
    if arguments.deepspeed:
        return f"zero{arguments.hf_deepspeed_config.config['zero_optimization']['stage']}"
    return "fsdp" if arguments.fsdp else "none"


def global_batch(arguments: TrainingArguments) -> int:
    """Rows of one optimiser step on all ranks."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def _fit(checkpoint: Path, arguments: TrainingArguments) -> bool:
    """Checks a checkpoint against this run and converts it where needed; True if its universal form is to be read."""
    marker = read_marker(checkpoint) or {}
    there, here = marker.get("sharding"), sharding(arguments)
    anew = f"begin a new run from its weights: model.init_from={checkpoint} with another training.output_dir."
    if there != here:
        raise ValueError(
            f"{checkpoint} was written under sharding {there!r} and this run uses {here!r}: their optimiser states do not fit. "
            f"Use {there!r} again, or {anew}"
        )
    before, now = marker.get("processes"), arguments.world_size
    if marker.get("global_batch", global_batch(arguments)) != global_batch(arguments):
        raise ValueError(
            f"{checkpoint} was written by {before} processes with {marker['global_batch']} rows a step, and this run has {now} "
            f"processes with {global_batch(arguments)}: it would not find its place in the data. Start {before} "
            f"processes (a recipe with training.global_batch_size keeps its rows a step on any number of processes), or {anew}"
        )
    if before == now:
        return False
    if here in ("zero3", "fsdp"):
        raise ValueError(
            f"{checkpoint} was written by {before} processes under {here}, and this run has {now}: that cannot be taken over "
            f"exactly. Start {before} processes, or {anew}"
        )
    logger.warning(
        "%s was written by %d processes and goes on with %d: weights, optimiser, schedule and rows continue exactly; random "
        "numbers (dropout) are drawn anew.",
        checkpoint,
        before,
        now,
    )
    if here == "none":
        return False
    _to_universal(checkpoint)
    return True


def _to_universal(checkpoint: Path) -> None:
    """DeepSpeed's conversion, in a process of its own, beside the checkpoint's own files."""
    latest = (checkpoint / "latest").read_text().strip()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(checkpoint / latest), "--output_folder", str(checkpoint / f"{latest}_universal")]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"{checkpoint} could not be converted for another number of processes: {done.stderr.strip().splitlines()[-1]}"
        )
