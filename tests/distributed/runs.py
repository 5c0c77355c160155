"""What ranks run in these tests: the four stages as small recipes, every ZeRO level, an interruption where one is wanted."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import yaml
from small_runs import sections

PARTITIONED = {
    "stage": 3,
    # As released, parameters this small would stay gathered after their first use, and a test would show nothing.
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}
OFFLOADED = {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "cpu"}}
LEVELS: dict[str, dict[str, Any] | None] = {
    "ddp": None,
    "zero1": {"zero_optimization": {"stage": 1}},
    "zero2": {"zero_optimization": {"stage": 2}},
    "zero3": {"zero_optimization": PARTITIONED},
    "zero3_offload": {"zero_optimization": PARTITIONED | OFFLOADED},
}
ALL = {"multi_modal_projector": 1e-3, "language_model": 1e-3, "lm_head": 1e-3}
STAGES = {
    1: ({"weights": {"lm": 1.0, "vm": 0.0}}, {"multi_modal_projector": 1e-3}),
    2: ({"weights": {"lm": 1.0, "vm": 0.0}}, ALL),
    3: ({"target": "language_model", "weights": {"lm": 0.0, "vm": 1.0}}, {"vm_head": 1e-3}),
    4: ({"target": "visual_words"}, ALL),
}


def write_recipe(
    folder: Path, name: str, model: Path, rows: Path, /, *, stage: int = 4, level: str | None = None, **changes: Any
) -> Path:
    """A recipe file of a stage whose global batch is four rows; `section__key=value` changes a value."""
    content = sections(model, rows, folder / name)
    objective, trainable = STAGES[stage]
    content["objective"] = {"name": "visual_words", **objective}
    content["trainable"] = dict(trainable)  # a change below is one of this recipe alone
    content["training"] |= {"per_device_train_batch_size": 2, "global_batch_size": 4, "max_steps": 20}
    if level is not None and LEVELS[level] is not None:
        content["training"]["deepspeed"] = json.loads(json.dumps(LEVELS[level]))
    for key, value in changes.items():
        section, _, key = key.partition("__")
        if key:
            content.setdefault(section, {})[key] = value
        else:
            content[section] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def train(file: Path, *, cut_after: int | None = None, signal_at: int | None = None) -> str:
    """One rank of a run; returns how it ended: `finished`, `cut` (the power fails) or `stopped at N` (on a signal)."""
    import warnings

    warnings.simplefilter("ignore")
    from transformers import TrainerCallback

    import vwlmm.training
    from vwlmm.config import read_recipe
    from vwlmm.stopping import RunStopped
    from vwlmm.trainer import ObjectiveTrainer

    class PowerCut(BaseException):
        pass

    class Event(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == cut_after:
                raise PowerCut
            if state.global_step == signal_at and args.process_index == args.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    class WatchedTrainer(ObjectiveTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Event())

    vwlmm.training.ObjectiveTrainer = WatchedTrainer  # type: ignore[misc]
    try:
        vwlmm.training.run(read_recipe(file))
    except PowerCut:
        return "cut"
    except RunStopped as stopped:
        return f"stopped at {stopped.step}"
    return "finished"
