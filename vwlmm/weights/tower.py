"""The vision tower of a published checkpoint: its configuration and image processor, from a folder, the Hub or what is known."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vwlmm.assembly import make_image_processor
from vwlmm.weights.sources import local_folder

# The towers of LLaVA-1.5 and VW-LMM, whose weights a checkpoint may bring along while it only names the rest.
_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {**_CLIP_L, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_CLIP_L, "image_size": 224},
}


@dataclass
class Tower:
    """A CLIP tower.

    Attributes:
        folder: where its files are; None for a known tower whose weights the checkpoint holds.
        config: its `CLIPVisionConfig`.
        image_processor: PIL form, with LLaVA's padding if asked for.
    """

    folder: Path | None
    config: Any
    image_processor: Any


def find_tower(name: str | Path | None, *, source: Path, image_aspect_ratio: str | None, has_weights: bool) -> Tower:
    """The tower that a checkpoint names or the caller gives.

    Args:
        name: a folder (also beside the checkpoint) or Hub id.
        source: the folder of the checkpoint.
        image_aspect_ratio: `pad`, or None for the tower's own way.
        has_weights: whether the checkpoint holds the tower's tensors.

    Raises:
        FileNotFoundError: the tower's files are needed and not there.
        ValueError: the checkpoint names no tower, or one that is no CLIP.
    """
    if not name:
        raise ValueError(f"{source} names no vision tower (mm_vision_tower): give it as --vision-tower FOLDER.")
    for folder in (Path(name), source / name):
        if folder.is_dir():
            return _from_folder(folder, image_aspect_ratio)
    if has_weights and str(name) in KNOWN_TOWERS:
        return _known(KNOWN_TOWERS[str(name)], image_aspect_ratio)
    try:
        return _from_folder(local_folder(name, "The vision tower"), image_aspect_ratio)
    except FileNotFoundError as problem:
        raise FileNotFoundError(f"{problem} Give its folder as --vision-tower FOLDER.") from None


def _from_folder(folder: Path, image_aspect_ratio: str | None) -> Tower:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    if config.model_type != "clip_vision_model":
        raise ValueError(f"{folder} is a {config.model_type!r} tower: these checkpoints are made with CLIP towers.")
    return Tower(folder, config, make_image_processor(str(folder), image_aspect_ratio))


def _known(fields: dict[str, Any], image_aspect_ratio: str | None) -> Tower:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig

    side = fields["image_size"]
    own = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    with tempfile.TemporaryDirectory() as folder:
        own.save_pretrained(folder)
        return Tower(None, CLIPVisionConfig(**fields), make_image_processor(folder, image_aspect_ratio))
