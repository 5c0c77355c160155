"""Two tiny towers and eight captioned pictures: whole runs on pairs in a second."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from small_runs import image_processor, plain_tokenizer
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")


def save_towers(folder: Path) -> Path:
    torch.manual_seed(5)
    Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)).save_pretrained(folder / "vision")
    image_processor().save_pretrained(folder / "vision")
    tokenizer = plain_tokenizer()
    tokenizer.pad_token = "<unk>"
    config = BertConfig(**SMALL, intermediate_size=32, vocab_size=len(tokenizer), max_position_embeddings=64)
    BertModel(config).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    return folder


def save_pairs(folder: Path) -> Path:
    """captions.jsonl and eight coloured pictures."""
    rows = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (30 + number, 40), colour).save(folder / f"{colour}.png")
        rows.append({"id": colour, "image": f"{colour}.png", "caption": f"a {colour} picture" + " of a shape" * number})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def pair_sections(towers: Path, pairs: Path, out: Path) -> dict[str, dict[str, Any]]:
    parts = (
        "local_vision_projection",
        "cls_vision_projection",
        "local_text_projection",
        "text_projection",
        "temperature",
    )
    return {
        "model": {
            "vision_tower": str(towers / "vision"),
            "text_tower": str(towers / "text"),
            "switches": {"embed_dim": 12, "projector_dropout": 0.0},
        },
        "objective": {"name": "freeze_align"},
        "trainable": dict.fromkeys(parts, 1e-2),
        "data": {"path": str(pairs / "captions.jsonl"), "num_workers": 0},
        "training": {
            "output_dir": str(out),
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "save_strategy": "no",
            "lr_scheduler_type": "constant",
            "disable_tqdm": True,
        },
    }
