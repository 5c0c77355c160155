"""Recipes: one strict YAML file a run. Every key is checked before a model is loaded; unknown keys name the nearest known one.

recipe = read_recipe("train/demo/1_align.yaml", ["training.max_steps=10"])
"""

import dataclasses
import difflib
import math
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vwlmm.data.config import DataConfig
from vwlmm.data.pairs_config import PairDataConfig
from vwlmm.evaluation.settings import ValidationConfig
from vwlmm.objectives import OBJECTIVES
from vwlmm.pair_recipe import PairModelConfig

# Keys of `training` that are ours, and not TrainingArguments'.
OWN_KEYS = {"resume": str, "global_batch_size": int}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class ModelConfig:
    """Which model a run starts from: an earlier one (`init_from`), or a new one from a vision tower and an LLM."""

    init_from: str | None = None  # folder or hub id of a visual-word model or a plain LLaVA
    vision_tower: str | None = None  # folder or hub id that AutoModel reads
    language_model: str | None = None  # folder or hub id that AutoModelForCausalLM reads
    chat_template: str | None = None  # vicuna_v1, mistral, llama_2, chatml, plain, or a Jinja template
    vm_head_init: str | None = None  # random, lm_head or word_embeddings; with init_from: start the VM head anew
    projector_type: str = "mlp2x_gelu"  # or linear
    projector_patch_merge: int = 1  # 2: one image token for 2×2 patches
    projector_norm: bool = False  # LayerNorm over the vision features before the projector
    contextual_text: bool = False  # feed the LLM its own states of the text (VLAP's released code); not with init_from
    keep_class_token: bool = (
        False  # project the tower's class token too (VLAP), which LLaVA leaves out; not with init_from
    )
    pseudo_image_features: bool | None = None  # feed the LLM mixtures of word embeddings; None: as init_from says
    vision_feature_layer: int = -2  # hidden state of the tower
    image_aspect_ratio: str | None = None  # pad: to a square with the mean colour (LLaVA-1.5)
    dtype: str = "float32"  # of the weights; with ZeRO and bf16 give bfloat16, DeepSpeed keeps fp32 masters
    attn_implementation: str | None = None  # sdpa (default), eager, flash_attention_2 (extra `flash`)

    def __post_init__(self) -> None:
        parts = [name for name in ("vision_tower", "language_model", "chat_template") if getattr(self, name)]
        if self.init_from is None and len(parts) < 3:
            raise ValueError(
                "model: expected init_from, or all of vision_tower, language_model and chat_template; got "
                f"{', '.join(parts) or 'none of them'}."
            )
        if self.init_from is not None and len(parts) > (self.chat_template is not None):
            raise ValueError(
                f"model: init_from already names a whole model, so {' and '.join(parts)} would be ignored: remove one of the two."
            )
        for name in ("contextual_text", "keep_class_token"):
            if self.init_from is not None and getattr(self, name):
                raise ValueError(f"model.{name} belongs to a new model; {self.init_from} has its own: leave it out.")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype is one of {', '.join(DTYPES)}: got {self.dtype!r}.")

    def new_model(self) -> dict[str, Any]:
        """What `vwlmm.assembly.configure` and `assemble` are given for a new model, embedded parts as folders."""
        from vwlmm.embedded import resolve

        names = (
            "chat_template", "projector_type", "projector_patch_merge", "projector_norm", "contextual_text",
            "keep_class_token", "vision_feature_layer", "image_aspect_ratio",
        )  # fmt: skip
        assert self.vision_tower  # __post_init__ has checked both
        assert self.language_model
        return {
            "vision_tower": resolve(self.vision_tower),
            "language_model": resolve(self.language_model),
            "pseudo_image_features": bool(self.pseudo_image_features),
            **{name: getattr(self, name) for name in names},
        }


@dataclass
class LoraConfig:
    """Low-rank adapters on the LLM (PEFT). Modules named in `trainable` learn in full beside them."""

    r: int = 128  # rank; LLaVA-1.5's LoRA script
    alpha: int = 256  # scale is alpha / r
    dropout: float = 0.05
    learning_rate: float = 2.0e-4
    target_modules: list[str] | str = "all-linear"  # last parts of module names inside the LLM
    quantize: str | None = None  # 4bit: QLoRA, needs a GPU and bitsandbytes

    def __post_init__(self) -> None:
        if self.quantize not in (None, "4bit"):
            raise ValueError(f"lora.quantize is 4bit or left out: got {self.quantize!r}.")
        if self.r < 1:
            raise ValueError(f"lora.r is a rank of at least 1: got {self.r}.")


# Objective → its `model` and `data` sections, where they are not those of a model that generates text.
SECTIONS: dict[str, tuple[type, type]] = {"freeze_align": (PairModelConfig, PairDataConfig)}


@dataclass
class Recipe:
    """One run, as its YAML says it; `training` holds `transformers.TrainingArguments` and `resume`."""

    model: Any  # a ModelConfig, or what SECTIONS says for the objective
    objective: dict[str, Any]
    trainable: dict[str, float | None]
    data: Any  # a DataConfig, or what SECTIONS says for the objective
    training: dict[str, Any]
    lora: LoraConfig | None = None
    evaluation: ValidationConfig | None = None
    source: Path | None = field(default=None, compare=False)

    def objective_object(self) -> Any:
        """The objective that `objective.name` names, with the section's other keys as its configuration."""
        section = dict(self.objective)
        objective, config = OBJECTIVES[section.pop("name")]
        return objective(_build(config, section, "objective"))

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain data, defaults included; `source` is left out."""
        resolved = dataclasses.asdict(self)
        resolved.pop("source")
        return {name: section for name, section in resolved.items() if section is not None}


def read_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: the YAML file.
        overrides: `section.key=value` each, the value in YAML; they win over the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: broken YAML, an unknown key (with the nearest known one), a missing section or a bad value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"A recipe was expected at {path}: there is no such file. Copy train/forkme.yaml to begin."
        )
    sections = _parse(path.read_text(), str(path))
    for override in overrides:
        _override(sections, override)
    try:
        return _recipe(sections, path)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe, every default filled in."""
    path.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))


def nearest(name: str, known: list[str]) -> str:
    """`Did you mean 'x'?`, or the list of known names where none is near."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)  # YAML reads a bare `on` as true
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."


def _recipe(sections: dict[str, Any], path: Path) -> Recipe:
    known = [f.name for f in dataclasses.fields(Recipe) if f.name != "source"]
    for name in sections:
        if name not in known:
            raise ValueError(f"unknown section {name!r}. {nearest(name, known)}")
    for name in known[:5]:
        if not isinstance(sections.get(name), dict):
            raise ValueError(f"a recipe needs the section `{name}`, with keys and values: got {sections.get(name)!r}.")
    method = sections["objective"].get("name")
    if not isinstance(method, str) or method not in OBJECTIVES:
        raise ValueError(f"objective.name: unknown method {method!r}. {nearest(str(method), list(OBJECTIVES))}")
    model_config, data_config = SECTIONS.get(method, (ModelConfig, DataConfig))
    recipe = Recipe(
        model=_build(model_config, sections["model"], "model"),
        objective=sections["objective"],
        trainable=_rates(sections["trainable"]),
        data=_build(data_config, sections["data"], "data"),
        training=_training(sections["training"]),
        lora=_build(LoraConfig, sections["lora"], "lora") if sections.get("lora") is not None else None,
        evaluation=_validation(sections.get("evaluation")),
        source=path,
    )
    objective = recipe.objective_object()
    if getattr(recipe.data, "padding_free", False) and hasattr(objective, "captions"):
        raise ValueError(
            f"data.padding_free: {method} looks at rows as pairs, which one sequence of all rows does not tell apart: leave "
            "it out."
        )
    if "learning_rate" not in recipe.training and None in recipe.trainable.values():
        raise ValueError("trainable: a module without a rate takes training.learning_rate, which is not given.")
    if "learning_rate" in recipe.training and recipe.trainable and None not in recipe.trainable.values():
        raise ValueError(
            "training.learning_rate would change nothing, because every module in `trainable` has its own rate: override "
            f"trainable.{next(iter(recipe.trainable))} instead, or leave the module's rate empty there."
        )
    if not recipe.trainable and recipe.lora is None:
        raise ValueError("nothing learns: name modules and their rates in `trainable`, or add a `lora` section.")
    if recipe.lora is not None:
        _check_lora(recipe)
    return recipe


def _validation(section: dict[str, Any] | None) -> ValidationConfig | None:
    """The `evaluation` section, its benchmarks known by name."""
    if section is None:
        return None
    if not isinstance(section, dict):
        raise ValueError(f"evaluation: expected keys and values (benchmark, every, data, limit): got {section!r}.")
    from vwlmm.evaluation.suite import read_names

    config = _build(ValidationConfig, section, "evaluation")
    read_names(config.names)
    return config


def _check_lora(recipe: Recipe) -> None:
    """Adapters are read again on top of the model they were trained on: that one has to be on disk, and to stay itself."""
    if not isinstance(recipe.model, ModelConfig):
        raise ValueError(f"lora adapts an LLM, and a {recipe.objective['name']} model has none: leave the section out.")
    if recipe.model.init_from is None:
        raise ValueError(
            "lora adapts a trained model, and is read again on top of it: give model.init_from (stage 1 trains the projector "
            "without lora)."
        )
    if recipe.model.vm_head_init is not None and "vm_head" not in recipe.trainable:
        raise ValueError(
            "lora saves the modules of `trainable` and the adapters, so a VM head started by model.vm_head_init would be "
            "lost: name vm_head in `trainable`."
        )
    inside = [name for name in recipe.trainable if "language_model" in name.split(".")]
    if inside:
        raise ValueError(
            f"trainable.{inside[0]} learns through the adapters of `lora`: leave it out of `trainable`, or leave lora out."
        )


def _build(config: type, values: dict[str, Any], section: str) -> Any:
    """A dataclass from a mapping: unknown and missing keys, and values of the wrong type, are errors that name the key."""
    fields = {f.name: f for f in dataclasses.fields(config)}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"unknown key {section}.{key}. {nearest(key, list(fields))}")
        _check_type(f"{section}.{key}", value, fields[key].type)
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{section}: missing key {', '.join(missing)}.")
    return config(**values)


def _check_type(key: str, value: Any, expected: Any) -> None:
    """Plain types only (str, int, float, bool, None, list, dict); a whole number serves as a float."""
    options = (expected,) if typing.get_origin(expected) in (list, dict) else typing.get_args(expected) or (expected,)
    plain = tuple(typing.get_origin(option) or option for option in options)
    fits = isinstance(value, plain) and not (isinstance(value, bool) and bool not in plain)
    if not fits and not (float in plain and isinstance(value, int) and not isinstance(value, bool)):
        names = " or ".join(getattr(option, "__name__", str(option)) for option in plain)
        raise ValueError(f"{key}: expected {names}, got {value!r}.")
    inner = [typing.get_args(option) for option in options if typing.get_origin(option) is type(value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items if inner and inner[0][-1] is not Any else ():
        _check_type(f"{key}.{name}", item, inner[0][-1])


def _rates(section: dict[str, Any]) -> dict[str, float | None]:
    for module, rate in section.items():
        if not isinstance(module, str):
            raise ValueError(f"trainable: expected names of modules, got {module!r}.")
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if rate is not None and not (number and 0 < rate < math.inf):
            raise ValueError(
                f"trainable.{module}: expected a learning rate above 0, or nothing to take training.learning_rate; got "
                f"{rate!r}. To freeze a module, leave it out."
            )
    return {module: None if rate is None else float(rate) for module, rate in section.items()}


def _training(section: dict[str, Any]) -> dict[str, Any]:
    """Checks keys and types against TrainingArguments; its own checks of values follow when it is built."""
    from transformers import TrainingArguments

    known: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(TrainingArguments) if f.init} | OWN_KEYS
    for key, value in section.items():
        if key not in known:
            raise ValueError(f"unknown key training.{key}. {nearest(key, list(known))}")
        _check_type(f"training.{key}", value, known[key])
    if not isinstance(section.get("output_dir"), str):
        raise ValueError(f"training.output_dir: expected the folder of this run, got {section.get('output_dir')!r}.")
    if section.get("resume", "auto") not in ("auto", "never"):
        raise ValueError(
            f"training.resume is auto (go on from the last whole checkpoint) or never: got {section['resume']!r}."
        )
    return dict(section)


def _override(sections: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    section, dot, key = path.partition(".")
    if not (equals and dot and key):
        raise ValueError(f"An override is section.key=value, like training.max_steps=10: got {override!r}.")
    target = sections.setdefault(section, {})
    if not isinstance(target, dict):
        raise ValueError(f"{override!r} changes {section}, which is not a section of keys and values.")
    if key not in target and section == "objective" and "." in key:
        outer, _, key = key.partition(".")
        target = target.setdefault(outer, {})
    target[key] = _parse_value(value)


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, and a key written twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: key {key!r} is written twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        sections = yaml.load(text, _Loader)
    except yaml.YAMLError as problem:
        raise ValueError(f"{name} is not readable YAML: {' '.join(str(problem).split())}") from None
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from None
    if not isinstance(sections, dict):
        raise ValueError(f"{name}: a recipe is a mapping of sections (model, objective, trainable, data, training).")
    return sections


def _parse_value(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text
