"""Who learns, and how fast: a recipe's `trainable` section applied to a model. What is not named is frozen."""

import difflib
from dataclasses import dataclass
from typing import Any

from torch import nn

from vwlmm.config import LoraConfig


@dataclass
class LearningRates:
    """The learning rate of every parameter that learns, kept by the parameter itself: tied weights have one rate."""

    by_parameter: dict[int, float]

    def groups(self, model: nn.Module, decayed: list[str], weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups, one a rate and decay: biases and norms do not decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = (self.by_parameter[id(parameter)], weight_decay if name in decayed else 0.0)
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": params, "lr": rate, "weight_decay": decay, "initial_lr": rate}
            for (rate, decay), params in groups.items()
        ]


def find_module(model: nn.Module, name: str) -> str:
    """The full path of a module named by its path or by the end of it: `vm_head`, `language_model.layers.3`.

    Raises:
        ValueError: no such module, with the nearest name; or several, with their paths.
    """
    paths = [path for path, _ in model.named_modules() if path == name or path.endswith("." + name)]
    if not paths:
        top = ["multi_modal_projector", "vm_head", "language_model", "lm_head", "vision_tower"]
        present = [path for path in top if any(p.endswith(path) for p, _ in model.named_modules())]
        if len(present) < 2:  # no LLM with a vision tower: its own parts
            present = [path for path, _ in model.named_children()]
        close = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Recipe names trainable module {name!r}, but the model has: {', '.join(present)}.{hint}")
    outermost = [path for path in paths if not any(path.startswith(other + ".") for other in paths)]
    if len(outermost) > 1:
        raise ValueError(
            f"Recipe names trainable module {name!r}, which could be any of {', '.join(outermost[:4])}: write more of its path."
        )
    return outermost[0]


def set_trainable(model: nn.Module, trainable: dict[str, float]) -> LearningRates:
    """Freezes everything, then lets the named modules learn.

    Args:
        model: any module tree.
        trainable: module name (see `find_module`) to learning rate.

    Raises:
        ValueError: an unknown module, a module without parameters, or one weight with two rates.
    """
    model.requires_grad_(False)
    rates: dict[int, float] = {}
    owner: dict[int, str] = {}
    # A longer path is the more particular wish: language_model at 1e-5, but language_model.layers.0 at 1e-6.
    for name in sorted(trainable, key=lambda name: find_module(model, name).count(".")):
        path, rate = find_module(model, name), trainable[name]
        parameters = list(model.get_submodule(path).parameters())
        if not parameters:
            raise ValueError(f"Recipe names trainable module {name!r}, which holds no parameters.")
        for parameter in parameters:
            inside = id(parameter) in owner and path.startswith(owner[id(parameter)] + ".")
            if rates.get(id(parameter), rate) != rate and not inside:
                raise ValueError(
                    f"Recipe gives one weight two learning rates: {name!r} shares it with {owner[id(parameter)]!r} (tied word "
                    "embeddings and LM head are one tensor). Give both the same rate, or name only one."
                )
            parameter.requires_grad_(True)
            rates[id(parameter)], owner[id(parameter)] = rate, path
    return LearningRates(rates)


def add_lora(model: Any, lora: LoraConfig, trainable: dict[str, float]) -> tuple[Any, LearningRates]:
    """Wraps the model with PEFT's adapters on the LLM; modules named in `trainable` learn in full and are saved with them."""
    import peft

    llm = find_module(model, "language_model")
    linear = [path for path, module in model.get_submodule(llm).named_modules() if isinstance(module, nn.Linear)]
    if lora.target_modules != "all-linear":
        wanted = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
        for name in wanted:
            if not any(path.split(".")[-1] == name for path in linear):
                kinds = sorted({path.split(".")[-1] for path in linear})
                raise ValueError(
                    f"lora.target_modules names {name!r}, but the LLM's linear layers are: {', '.join(kinds)}."
                )
        linear = [path for path in linear if path.split(".")[-1] in wanted]
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[f"{llm}.{path}" for path in linear],
        modules_to_save=[find_module(model, name) for name in trainable] or None,
    )
    wrapped = peft.get_peft_model(model, config)
    rates = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            plain = name.replace("modules_to_save.default.", "")
            named = [rate for module, rate in trainable.items() if f".{module}." in f".{plain}"]
            rates[id(parameter)] = lora.learning_rate if "lora_" in name else named[0]
    return wrapped, LearningRates(rates)
