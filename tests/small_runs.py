"""Folders and recipes for whole runs that take a second: a tower, an LLM, rows with real pictures, one YAML."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import WORDS, byte_level_bpe, tiny_clip, tiny_llama
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vwlmm.assembly import assemble
from vwlmm.config import Recipe, read_recipe

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of an LLM that has never heard of pictures: no `<image>`, no padding token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(300, SPECIAL, WORDS),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def image_processor(side: int = 28) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def save_parts(folder: Path) -> Path:
    torch.manual_seed(1)
    # Nine layers: the demo's recipes read the eighth.
    CLIPVisionModel(tiny_clip(num_hidden_layers=9)).save_pretrained(folder / "tower")
    image_processor().save_pretrained(folder / "tower")
    tokenizer = plain_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(tiny_llama(**sizes)).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return folder


def save_model(parts: Path, folder: Path) -> Path:
    torch.manual_seed(2)
    model, processor = assemble(parts / "tower", parts / "llm", chat_template="chatml")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava_row(row_id: str, *turns: str, image: Any = None) -> dict[str, Any]:
    """A LLaVA row whose turns are human, gpt, human, …"""
    row: dict[str, Any] = {"id": row_id} if image is None else {"id": row_id, "image": image}
    row["conversations"] = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]
    return row


def save_rows(folder: Path) -> Path:
    (folder / "images").mkdir()
    generator = torch.Generator().manual_seed(3)
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        pixels = torch.randint(0, 256, (30 + number, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "images" / name)
    captions = [
        llava_row(f"c{number}", "<image>\nDescribe it.", "A picture" + " of a shape" * (number % 3), image=name)
        for number, name in enumerate(names)
    ]
    instruct = [
        *(
            llava_row(f"q{n}", "<image>\nWhat colour?", "It is red." * (n + 1), "Sure?", "Yes", image=names[n])
            for n in range(5)
        ),
        llava_row("two", "<image><image>\nWhich is blue?", "A picture of green", image=names[5:7]),
        llava_row("text", "What is red?", "A colour"),
        llava_row("more text", "And what is a shape? It is or blue?", "This"),
    ]
    for name, rows in {"captions": captions, "instruct": instruct}.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def sections(model: Path, rows: Path, output_dir: Path) -> dict[str, dict[str, Any]]:
    """A recipe that goes on from `model`: both terms, three modules learn, one step of eight rows."""
    return {
        "model": {"init_from": str(model)},
        "objective": {"name": "visual_words", "target": "visual_words", "weights": {"lm": 1.0, "vm": 1.0}},
        "trainable": {"multi_modal_projector": 1e-2, "language_model": 1e-3, "lm_head": 1e-3},
        "data": {
            "path": str(rows / "instruct.json"),
            "images": str(rows / "images"),
            "max_length": 256,
            "num_workers": 0,
        },
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "save_strategy": "no",
            "lr_scheduler_type": "constant",
            "disable_tqdm": True,
        },
    }


def recipe(file: Path, content: dict[str, dict[str, Any]], *overrides: str) -> Recipe:
    """Written as YAML and read as a user's file is."""
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_recipe(file, overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ by a bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def logs(folder: Path) -> list[dict[str, float]]:
    """What the run logged, line by line."""
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]
