"""The generation defaults that go beside the weights, without what transformers refuses to save again."""

from pathlib import Path
from typing import Any

from vwlmm.weights.sources import read_json

FILE = "generation_config.json"
SAMPLING = ("temperature", "top_p", "top_k", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff")


def save_generation_config(source: Path, text_config: Any, folder: Path) -> list[str]:
    """Copies the source's defaults, or makes them from the LLM's configuration; returns what to tell about it."""
    from transformers import GenerationConfig

    notes = []
    if (source / FILE).is_file():
        fields = {name: value for name, value in read_json(source / FILE).items() if not name.startswith("_")}
        dropped = [name for name in SAMPLING if not fields.get("do_sample") and fields.pop(name, None) is not None]
        if dropped:
            notes.append(
                f"generation_config.json: {', '.join(dropped)} left out, because answers are greedy without do_sample"
            )
        GenerationConfig(**fields).save_pretrained(folder)
    else:
        GenerationConfig.from_model_config(text_config).save_pretrained(folder)
    return notes
