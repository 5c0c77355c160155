"""A recipe's `training.deepspeed`: the ZeRO configuration is read, completed, and checked against the recipe.

Whatever both could say is `"auto"` in `zero_configs/*.json` and comes from the recipe; a file that says otherwise is an
error before a model is loaded.
"""

import copy
import json
from pathlib import Path
from typing import Any

FOLDER = "zero_configs"
_AUTO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    # DeepSpeed's own default is 1.0, whatever the recipe says.
    "gradient_clipping": "auto",
}


def zero_config(
    source: str | dict[str, Any], training: dict[str, Any], *, processes: int, on_cpu: bool
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run.

    Args:
        source: a JSON file, or its content.
        training: the recipe's `training` section.
        processes: how many ranks there are.
        on_cpu: no GPU here: nothing may need a compiler or pinned memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, an unknown stage, or a value that contradicts the recipe, with both values.
    """
    name, config = _read(source)
    zero = config.setdefault("zero_optimization", {})
    stage = zero.get("stage")
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{name}: zero_optimization.stage is 0, 1, 2 or 3: got {stage!r}.")
    for block, instead in (
        ("optimizer", "`trainable` and training.optim"),
        ("scheduler", "training.lr_scheduler_type"),
    ):
        if block in config:
            raise ValueError(
                f"{name}: the block {block!r} would replace what the recipe says with {instead} (a learning rate for each "
                "module): remove it from the file."
            )
    for key, value in _AUTO.items():
        config.setdefault(key, value)
    if stage == 3 and not zero.setdefault("stage3_gather_16bit_weights_on_model_save", True):
        raise ValueError(
            f"{name}: stage3_gather_16bit_weights_on_model_save: false would leave no model folder to load: set it to true."
        )
    _check_against(config, training, processes, name)
    if on_cpu:
        _without_compiler(config, zero)
    return config


def _read(source: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, dict):
        return "training.deepspeed", copy.deepcopy(source)
    path = Path(source)
    if not path.is_file():
        known = sorted(str(file) for file in Path(FOLDER).glob("*.json"))
        raise FileNotFoundError(
            f"training.deepspeed names {path}: there is no such file. Known here: {', '.join(known) or 'none'}."
        )
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path} is not readable JSON: {problem}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a DeepSpeed configuration is a mapping of keys and values.")
    return str(path), config


def _check_against(config: dict[str, Any], training: dict[str, Any], processes: int, name: str) -> None:
    micro = training.get("per_device_train_batch_size", 8)
    accumulate = training.get("gradient_accumulation_steps", 1)
    wanted = {
        "train_micro_batch_size_per_gpu": (micro, "training.per_device_train_batch_size"),
        "gradient_accumulation_steps": (accumulate, "training.gradient_accumulation_steps"),
        "train_batch_size": (
            micro * accumulate * processes,
            f"{micro} rows × {accumulate} accumulated × {processes} processes",
        ),
        "gradient_clipping": (training.get("max_grad_norm", 1.0), "training.max_grad_norm"),
    }
    for key, (ours, where) in wanted.items():
        if config[key] not in ("auto", ours):
            raise ValueError(
                f'{name} says {key}: {config[key]}, the recipe says {ours} ({where}): write "auto" in the file, and change '
                "the recipe if need be."
            )
    for kind in ("bf16", "fp16"):
        enabled = config.setdefault(kind, {"enabled": "auto"}).get("enabled", False)
        if enabled not in ("auto", bool(training.get(kind, False))):
            raise ValueError(
                f"{name} says {kind}.enabled: {json.dumps(enabled)}, the recipe says training.{kind}: "
                f'{json.dumps(bool(training.get(kind, False)))}: write "auto" in the file.'
            )


def _without_compiler(config: dict[str, Any], zero: dict[str, Any]) -> None:
    """DeepSpeed's own Adam for offloaded optimisers is compiled when it is first used; torch's gives the same numbers."""
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    for part in ("offload_optimizer", "offload_param"):
        if part in zero:
            zero[part]["pin_memory"] = False


def share_batch(training: dict[str, Any], *, processes: int) -> dict[str, int]:
    """`training.global_batch_size`, rows of one optimiser step on all ranks, as accumulated micro-batches of each rank.

    Raises:
        ValueError: it cannot be shared out in whole micro-batches, or gradient_accumulation_steps says otherwise.
    """
    rows = training.get("global_batch_size")
    if rows is None:
        return {}
    micro = training.get("per_device_train_batch_size", 8)
    accumulate, over = divmod(rows, micro * processes)
    if over or accumulate < 1:
        raise ValueError(
            f"training.global_batch_size {rows} cannot be shared by {processes} processes of {micro} rows "
            f"(training.per_device_train_batch_size): it has to be a multiple of {micro * processes}. Change one of the three."
        )
    given = training.get("gradient_accumulation_steps", accumulate)
    if given != accumulate:
        raise ValueError(
            f"training.gradient_accumulation_steps {given} contradicts training.global_batch_size {rows}, which needs "
            f"{accumulate} on {processes} processes of {micro} rows: leave gradient_accumulation_steps out."
        )
    return {"gradient_accumulation_steps": accumulate}


def fsdp_config(given: dict[str, Any] | str | None, *, on_cpu: bool) -> dict[str, Any]:
    """FSDP2's configuration: decoder layers are sharded one by one, and the model is saved whole.

    Raises:
        ValueError: no GPU here: accelerate would train DDP without a word.
    """
    if on_cpu:
        raise ValueError(
            "training.fsdp needs a GPU: without one, accelerate would not shard anything. Use training.deepspeed, which runs on "
            "CPU as well."
        )
    config = json.loads(Path(given).read_text()) if isinstance(given, str) else dict(given or {})
    config.setdefault("version", 2)
    config.setdefault("auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
    # A sharded state dict would leave no model folder to load.
    config.setdefault("state_dict_type", "FULL_STATE_DICT")
    return config
