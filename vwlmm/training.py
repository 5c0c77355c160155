"""One run from one recipe: model, data, who learns, Trainer, and the folder it leaves behind.

run(read_recipe("train/demo/1_align.yaml"))        # or: vwlmm train train/demo/1_align.yaml
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments, set_seed

from vwlmm import distributed
from vwlmm.config import OWN_KEYS, ModelConfig, Recipe, write_recipe
from vwlmm.data.collator import Collator
from vwlmm.data.dataset import load_datasets
from vwlmm.data.pairs_config import PairDataConfig
from vwlmm.data.templates import chat_template_for
from vwlmm.embedded import resolve
from vwlmm.loading import is_adapter
from vwlmm.models.checksums import write_checksums
from vwlmm.pair_recipe import PairModelConfig
from vwlmm.resuming import checkpoint_to_resume
from vwlmm.stopping import RunStopped
from vwlmm.trainable import LearningRates, add_lora, set_trainable
from vwlmm.trainer import ObjectiveTrainer
from vwlmm.zero_config import fsdp_config, share_batch, zero_config

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
RESULT_FILE = "result.json"  # written last: a folder with it holds a finished run


def run(recipe: Recipe) -> Path:
    """Trains, and returns the folder of the finished model.

    A run cut short goes on from its last whole checkpoint; a finished one is left as it is.

    Raises:
        ValueError: the recipe does not fit model or data; the folder holds another run.
        RunStopped: a signal asked to stop; the checkpoint is written, and the same call goes on from it.
        BadRow: a row that cannot be learned from (see `data.on_bad_row`).
    """
    output_dir = Path(recipe.training["output_dir"])
    arguments = arguments_of(recipe)
    if distributed.agreed(lambda: is_finished(recipe)):
        logger.warning("%s holds this run, finished: nothing to do.", output_dir)
        return output_dir
    resume = checkpoint_to_resume(recipe.training, arguments)
    trainer, processor = make_trainer(recipe, arguments)
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        write_recipe(recipe, output_dir / RECIPE_FILE)
    # The first step's randomness does not depend on how the model was made: interrupted runs equal whole ones.
    set_seed(arguments.seed)
    result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.stop_on_signal.stopped:
        raise RunStopped(trainer.state.global_step, trainer.state.max_steps)
    metrics = dict(result.metrics)
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    if trainer.benchmarks is not None:
        metrics |= trainer.benchmarks.metrics
    _finish(trainer, processor, recipe, metrics)
    return output_dir


def make_trainer(recipe: Recipe, arguments: TrainingArguments) -> tuple[ObjectiveTrainer, Any]:
    """The trainer of a recipe, with its model, its data and what learns; and the processor."""
    set_seed(arguments.seed)
    distributed.first_on_each_node(lambda: _prepare_embedded(recipe))
    # A model put together from parts, or with adapters merged, is made whole; ZeRO-3 partitions it when training begins.
    is_read_as_it_is = recipe.model.init_from is not None and not is_adapter(recipe.model.init_from)
    with contextlib.nullcontext() if is_read_as_it_is else distributed.whole_models():
        model, processor = build_model(recipe.model, quantize=recipe.lora.quantize if recipe.lora else None)
    # Adapters begin the same however the model was read: ZeRO-3 draws random numbers while it reads.
    set_seed(arguments.seed)
    objective = recipe.objective_object()
    if hasattr(objective, "prepare"):  # one that compares with words has to know the tokenizer's
        objective.prepare(processor.tokenizer)
    model, rates = _learners(model, recipe)
    check_heads(recipe, model)
    train, validation, collator = _data(recipe, model, processor, arguments)
    if recipe.model.init_from is None and getattr(recipe.model, "projector_norm", False):
        _measure_features(model, train)
    trainer = ObjectiveTrainer(
        model=model,
        args=arguments,
        objective=objective,
        rates=rates,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        data_collator=collator,
    )
    if recipe.evaluation is not None:
        from vwlmm.evaluation.validation import BenchmarkCallback

        trainer.benchmarks = BenchmarkCallback(trainer, processor, recipe.evaluation)
        trainer.add_callback(trainer.benchmarks)
    if validation is not None and isinstance(recipe.data, PairDataConfig):
        from vwlmm.pair_training import RetrievalCallback

        trainer.add_callback(RetrievalCallback(validation, collator, arguments.per_device_eval_batch_size))
    return trainer, processor


def _prepare_embedded(recipe: Recipe) -> None:
    """Embedded models and data, wherever the recipe names them, are prepared on first use."""
    for section in (recipe.model, recipe.data):
        for value in dataclasses.asdict(section).values():
            if isinstance(value, str):
                resolve(value)
                resolve(Path(value).parent)  # a file of the embedded data


def is_finished(recipe: Recipe) -> bool:
    """True when the output folder holds exactly this run, to its end.

    Raises:
        ValueError: the folder holds another run, or something that is not a run.
    """
    output_dir = Path(recipe.training["output_dir"])
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return False
    saved = output_dir / RECIPE_FILE
    if not saved.is_file():
        raise ValueError(
            f"training.output_dir {output_dir} holds files, but no run of ours (no {RECIPE_FILE}): choose an empty folder."
        )
    different = _first_difference(yaml.safe_load(saved.read_text()), yaml.safe_load(yaml.safe_dump(recipe.to_dict())))
    if different:
        raise ValueError(
            f"training.output_dir {output_dir} already holds another run ({different}): choose another folder, or delete it."
        )
    return (output_dir / RESULT_FILE).is_file()


def _data(recipe: Recipe, model: Any, processor: Any, arguments: TrainingArguments) -> tuple[Any, Any, Any]:
    """Training rows, validation rows or None, and what makes batches of them."""
    output_dir = Path(recipe.training["output_dir"])
    if isinstance(recipe.data, PairDataConfig):
        from vwlmm.pair_training import load_pairs, make_collator

        train, validation = load_pairs(recipe.data, model, processor, arguments)
        return train, validation, make_collator(processor, recipe.data, output_dir)
    if recipe.data.padding_free:
        (model.get_base_model() if hasattr(model, "get_base_model") else model).check_padding_free()
    rows, held_out = load_datasets(recipe.data, processor, seed=arguments.seed)
    quarantine = output_dir if recipe.data.on_bad_row == "quarantine" else None
    return rows, held_out, Collator(processor, padding_free=recipe.data.padding_free, quarantine=quarantine)


def build_model(config: ModelConfig | PairModelConfig, *, quantize: str | None = None) -> tuple[Any, Any]:
    """The model and processor that a recipe's `model` section describes."""
    if isinstance(config, PairModelConfig):
        from vwlmm.pair_training import build_pair

        return build_pair(config)
    from vwlmm.assembly import assemble, initialise_vm_head
    from vwlmm.loading import has_vm_head, load_model

    dtype = getattr(torch, config.dtype)
    extra: dict[str, Any] = {"attn_implementation": config.attn_implementation} if config.attn_implementation else {}
    if config.init_from is None:
        if quantize:
            raise ValueError("lora.quantize needs a trained model: give model.init_from.")
        model, processor = assemble(**config.new_model(), vm_head_init=config.vm_head_init or "random", dtype=dtype)
        if config.attn_implementation:
            model.set_attn_implementation(config.attn_implementation)
        return model, processor
    if quantize:
        extra["quantization_config"] = _four_bit()
    if config.pseudo_image_features is not None:
        extra["pseudo_image_features"] = config.pseudo_image_features
    fresh = config.vm_head_init is not None
    model, processor = load_model(config.init_from, dtype=dtype, device="cpu", require_vm_head=not fresh, **extra)
    if fresh:
        if has_vm_head(resolve(config.init_from)):
            logger.warning("model.vm_head_init starts the VM head of %s anew.", config.init_from)
        initialise_vm_head(model, config.vm_head_init or "random")
    return model, _with_template(processor, config.chat_template)


def build_processor(config: ModelConfig | PairModelConfig) -> Any:
    """The processor that `build_model` would give, without loading weights."""
    if isinstance(config, PairModelConfig):
        from vwlmm.pair_training import build_pair_processor

        return build_pair_processor(config)
    from transformers import AutoProcessor

    from vwlmm.assembly import make_processor

    if config.init_from is not None:
        processor = AutoProcessor.from_pretrained(str(resolve(config.init_from)))
        return _with_template(processor, config.chat_template)
    assert config.vision_tower  # ModelConfig has checked all three
    assert config.language_model
    assert config.chat_template
    return make_processor(
        resolve(config.vision_tower),
        resolve(config.language_model),
        chat_template=config.chat_template,
        projector_patch_merge=config.projector_patch_merge,
        image_aspect_ratio=config.image_aspect_ratio,
        keep_class_token=config.keep_class_token,
    )[0]


def _with_template(processor: Any, chat_template: str | None) -> Any:
    if chat_template:
        processor.tokenizer.chat_template = chat_template_for(chat_template, processor.tokenizer)
        processor.chat_template = processor.tokenizer.chat_template
    return processor


def arguments_of(recipe: Recipe) -> TrainingArguments:
    """TrainingArguments with what our batches need; DeepSpeed on a CPU speaks gloo and is told so before anything else."""
    given = {name: value for name, value in recipe.training.items() if name not in OWN_KEYS}
    given |= share_batch(recipe.training, processes=distributed.world_size())
    on_cpu = not torch.cuda.is_available()
    if given.get("deepspeed"):
        processes = distributed.world_size()
        given["deepspeed"] = zero_config(given["deepspeed"], given, processes=processes, on_cpu=on_cpu)
        distributed.pretend_launched()
        if on_cpu:
            distributed.start_deepspeed_on_cpu()
    if given.get("fsdp"):
        given["fsdp_config"] = fsdp_config(given.get("fsdp_config"), on_cpu=on_cpu)
    defaults = {
        "use_cpu": on_cpu,
        "report_to": "none",
        "dataloader_num_workers": recipe.data.num_workers,
        "logging_steps": 10,
        # A NaN is shown, not averaged away.
        "logging_nan_inf_filter": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if given.get("gradient_checkpointing") else None,
    }
    if given.get("push_to_hub"):
        # Trainer's other ways upload the folder as it is, paths of this machine included.
        defaults["hub_strategy"] = "end"
    # Our batches hold keys that Trainer does not know, and the objective's counts are global.
    fixed = {"remove_unused_columns": False, "average_tokens_across_devices": True}
    try:
        return TrainingArguments(**{**defaults, **given, **fixed})
    except (TypeError, ValueError) as problem:
        raise ValueError(f"training: {problem}") from None


def _learners(model: Any, recipe: Recipe) -> tuple[Any, LearningRates]:
    trainable = {
        name: float(recipe.training["learning_rate"]) if rate is None else rate
        for name, rate in recipe.trainable.items()
    }
    if recipe.lora is not None:
        return add_lora(model, recipe.lora, trainable)
    return model, set_trainable(model, trainable)


def check_heads(recipe: Recipe, model: Any) -> None:
    """A head that the recipe lets learn and the objective gives nothing: a mistake, and under ZeRO a crash without a name."""
    objective = recipe.objective_object()
    if not hasattr(objective, "heads_that_learn"):
        return
    learning = objective.heads_that_learn(bool(model.config.pseudo_image_features))
    idle = [head for head in ("lm_head", "vm_head") if head in recipe.trainable and head not in learning]
    if not idle:
        return
    target = recipe.objective.get("target", "visual_words")
    message = (
        f"trainable names {idle[0]}, but this objective gives it no gradient (target {target}, detached): leave it out of "
        "`trainable`, or set objective.detach_target: false."
    )
    if recipe.training.get("deepspeed"):
        raise ValueError(message)
    logger.warning(message)


def _measure_features(model: Any, train: Any, num_images: int = 256) -> None:
    from vwlmm.assembly import measure_features

    rows = (train[i] for i in range(len(train))) if hasattr(train, "__len__") else iter(train)
    pictures = (row["pixel_values"] for row in rows if "pixel_values" in row)
    found = list(itertools.islice(pictures, num_images))
    if not found:
        raise ValueError("model.projector_norm measures the features of training pictures, but no row has one.")
    measure_features(model, torch.cat(found))


def _four_bit() -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not torch.cuda.is_available() or not is_bitsandbytes_available():
        raise ValueError(
            "lora.quantize: 4bit (QLoRA) needs a GPU and `pip install bitsandbytes`; leave it out to train LoRA."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        # Only the LLM is quantised: the heads' weights enter the streamed losses as they are.
        llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head", "vm_head"],
    )


def _finish(trainer: ObjectiveTrainer, processor: Any, recipe: Recipe, metrics: dict[str, Any]) -> None:
    output_dir = Path(recipe.training["output_dir"])
    trainer.save_model(str(output_dir), _internal_call=True)  # else it would push a run that is not finished
    if trainer.is_world_process_zero():
        processor.save_pretrained(output_dir)
        if recipe.lora is not None:
            # Adapters are read on top of the base model, whose configuration the recipe may have changed.
            trainer.base_model.config.save_pretrained(output_dir)
        write_checksums(output_dir)
        quarantine = output_dir / "quarantine.jsonl"
        if quarantine.is_file():
            metrics["bad_rows"] = len(quarantine.read_text(encoding="utf-8").splitlines())
            logger.warning("%d bad rows or shards were left out: %s lists them.", metrics["bad_rows"], quarantine)
        trainer.state.save_to_json(str(output_dir / "trainer_state.json"))
        unfinished = output_dir / f".{RESULT_FILE}"
        unfinished.write_text(json.dumps(metrics, indent=2) + "\n")
        os.replace(unfinished, output_dir / RESULT_FILE)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
        trainer.accelerator.wait_for_everyone()


def _first_difference(saved: Any, wanted: Any, path: str = "") -> str | None:
    """The first key whose value differs, as `section.key: saved, not wanted`; how to resume does not make another run."""
    if path == "training.resume":
        return None
    if not (isinstance(saved, dict) and isinstance(wanted, dict)):
        return None if saved == wanted else f"{path}: {saved!r} there, {wanted!r} here"
    for key in [*saved, *(key for key in wanted if key not in saved)]:
        found = _first_difference(saved.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))
        if found:
            return found
    return None
