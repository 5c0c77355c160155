"""Small pictures, a small tokenizer made on the spot and a LLaVA processor of 2 × 2 patches: no network, no weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import byte_level_bpe
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from vwlmm.data.templates import CHAT_TEMPLATES

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>"]
WORDS = ["What is this? A cat on a mat. And this? No, a big dog! USER ASSISTANT user assistant system [INST] caption"]


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[4:],
    )


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, SmolLM2 and Qwen have: every text comes back letter for letter."""
    return _wrap(byte_level_bpe(400, SPECIAL, WORDS))


@pytest.fixture(scope="session")
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Words with a leading `▁`, as LLaMA and Mistral have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["\n"],
    )
    tokenizer.train_from_iterator([*WORDS, "\n"], trainer)
    return _wrap(tokenizer)


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words; blanks belong to no token."""
    words = {
        token: number for number, token in enumerate([*SPECIAL, *WORDS[0].split(), "What", "is", "this", "?", "cat"])
    }
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrap(tokenizer)


@pytest.fixture(scope="session")
def make_processor() -> Callable[..., LlavaProcessor]:
    def make(tokenizer: Any, template: str | None = "chatml", **options: Any) -> LlavaProcessor:
        size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}} | options
        return LlavaProcessor(
            CLIPImageProcessorPil(**size),
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATES.get(template or ""),
        )

    return make


@pytest.fixture(scope="session")
def processor(make_processor: Any, byte_tokenizer: Any) -> LlavaProcessor:
    """An image is 4 tokens; the chat template is chatml."""
    return make_processor(byte_tokenizer)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of good pictures a.png to d.png of different colours, and one of each kind of bad file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in zip("abcd", ["red", "green", "blue", "white"], strict=True):
        Image.new("RGB", (40, 30), color).save(folder / f"{name}.png")
    noise = Image.effect_noise((64, 64), 80)
    noise.save(folder / "whole.png")
    for suffix in ("png", "jpg"):
        noise.convert("RGB").save(folder / f"cut.{suffix}")
        data = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes rows as .json (a list) or .jsonl (lines)."""

    def write_rows(name: str, rows: list[Any]) -> Path:
        path = tmp_path / name
        text = (
            json.dumps(rows, indent=2) if name.endswith(".json") else "\n".join(json.dumps(row) for row in rows) + "\n"
        )
        path.write_text(text)
        return path

    return write_rows


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    datasets.disable_progress_bars()


@pytest.fixture
def talk() -> Callable[..., dict[str, Any]]:
    return llava_row


def llava_row(row_id: str, *turns: str, image: Any = None) -> dict[str, Any]:
    """A LLaVA row whose turns are human, gpt, human, …"""
    row: dict[str, Any] = {"id": row_id}
    if image is not None:
        row["image"] = image
    roles = ("human", "gpt")
    row["conversations"] = [{"from": roles[number % 2], "value": text} for number, text in enumerate(turns)]
    return row


# One row of every kind that cannot be learned from, with the field and a word of the message that names it.
BAD_ROWS: dict[str, tuple[Any, str, str]] = {
    "missing image": (llava_row("1", "<image>\nQ", "A", image="nowhere.png"), "image", "no such file"),
    "truncated PNG": (llava_row("2", "<image>\nQ", "A", image="cut.png"), "image", "truncated PNG"),
    "truncated JPEG": (llava_row("3", "<image>\nQ", "A", image="cut.jpg"), "image", "truncated JPEG"),
    "zero-byte image": (llava_row("4", "<image>\nQ", "A", image="zero.png"), "image", "zero bytes"),
    "not an image": (llava_row("5", "<image>\nQ", "A", image="text.png"), "image", "not an image"),
    "second image bad": (llava_row("6", "<image><image>", "A", image=["a.png", "cut.png"]), "image[1]", "truncated"),
    "too few markers": (llava_row("7", "Q", "A", image="a.png"), "image", "0 `<image>` and 1 image"),
    "too many markers": (llava_row("8", "<image><image>Q", "A", image="a.png"), "image", "2 `<image>` and 1 image"),
    "marker without image": (llava_row("9", "<image>\nQ", "A"), "image", "1 `<image>` and 0 images"),
    "image on the web": (llava_row("10", "<image>", "A", image="http://x/a.png"), "image", "download"),
    "unknown role": (
        {"id": "11", "conversations": [{"from": "robot", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        "conversations[0].from",
        "'robot'",
    ),
    "empty role": (
        {"id": "12", "messages": [{"role": "", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        "messages[0].role",
        "empty role",
    ),
    "empty answer": (llava_row("13", "Q", ""), "conversations[1].value", "empty turn"),
    "answer is missing": ({"id": "14", "conversations": [{"from": "gpt"}]}, "conversations[0].value", "nothing"),
    "only a question": (llava_row("15", "Q"), "messages", "nothing to learn"),
    "no conversation": ({"id": "16", "conversations": []}, "conversations", "empty list"),
    "unknown shape": ({"id": "17", "prompt": "Q"}, "row", "id, prompt"),
    "not an object": (["Q", "A"], "row", "list"),
    "unknown part": (
        {"id": "18", "messages": [{"role": "assistant", "content": [{"type": "video"}]}]},
        "messages[0].content[0]",
        "'video'",
    ),
    "too long": (llava_row("19", "What is this? " * 60, "A"), "length", "too long"),
}


@pytest.fixture(params=BAD_ROWS)
def bad_row(request: pytest.FixtureRequest) -> tuple[Any, str, str]:
    """A bad row, the field and a word of its message."""
    return BAD_ROWS[request.param]


@pytest.fixture
def bad_rows() -> list[Any]:
    """One row of each bad kind."""
    return [row for row, _, _ in BAD_ROWS.values()]
