"""Ask a trained model questions about pictures and score the answers, also with the picture taken away.

Works with any LLaVA-like model and processor of transformers. A model that looks must do much worse on a grey picture
and on another row's picture than on the real one; how far it gets without looking is `easy_vqa.blind_baseline`.
"""

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from tqdm import tqdm

from vwlmm.demo.easy_vqa import accuracy, question_and_answer, question_kind

__all__ = ["Picture", "accuracy", "answer_questions", "other_pictures"]

Picture = Literal["real", "blank", "shuffled"]


def answer_questions(
    model: Any,
    processor: Any,
    rows: Sequence[dict],
    *,
    images: Path,
    batch_size: int,
    max_new_tokens: int = 8,
    picture: Picture = "real",
    seed: int = 0,
    autocast: torch.dtype | None = None,
) -> list[dict]:
    """Greedy answers to LLaVA rows of one exchange each, in the order of the rows.

    Args:
        model: a model with `generate`, such as `LlavaForConditionalGeneration`, on its device; its mode is kept.
        processor: its processor, with a chat template.
        rows: `id`, `image` and one human and one gpt turn each, with `<image>` once in the question.
        images: the folder that the rows' `image` is relative to.
        batch_size: rows answered at once. Prompts are padded on the left and batched by length; both change the
            speed, not the answers.
        max_new_tokens: an answer that does not end is cut here.
        picture: "real"; "blank", a grey picture of the same size; or "shuffled", the picture of another row, never of
            the same image.
        seed: of the shuffling.
        autocast: compute in this dtype, e.g. `torch.bfloat16`, while the weights keep theirs.

    Returns:
        A dictionary a row: `id`, `image`, `question`, `expected`, `answer`, `kind`, and `shown`, the picture that the
        model saw (None if blank).

    Raises:
        ValueError: `picture` is not one of the three, a row is not one exchange about one image, or no
            shuffling exists.
        FileNotFoundError: an image is missing.
    """
    if picture not in get_args(Picture):
        raise ValueError(f"picture should be one of {', '.join(get_args(Picture))}, got {picture!r}.")
    answers = [_unanswered(row, picture) for row in rows]
    if picture == "shuffled":
        for answer, other in zip(answers, other_pictures([row["image"] for row in rows], seed), strict=True):
            answer["shown"] = other
    prompts = [_prompt(processor, row) for row in rows]
    lengths = [len(ids) for ids in processor.tokenizer(prompts)["input_ids"]] if prompts else []
    # Longest first, so that a batch too large for the memory fails at once and not after most of the work.
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(rows), desc=f"answering ({picture} pictures)", unit="question") as progress:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                pictures = [_load_picture(images, answers[i], processor) for i in batch]
                texts = _generate(model, processor, [prompts[i] for i in batch], pictures, max_new_tokens, autocast)
                for i, text in zip(batch, texts, strict=True):
                    answers[i]["answer"] = text
                progress.update(len(batch))
    finally:
        model.train(was_training)
    return answers


def other_pictures(images: Sequence[str], seed: int) -> list[str]:
    """For every entry the image of another entry, each used as often as before and none in a place of its own.

    Raises:
        ValueError: one image fills more than half of the entries, so that there is no such arrangement.
    """
    if not images:
        return []
    counts = Counter(images)
    image, largest = counts.most_common(1)[0]
    if 2 * largest > len(images):
        raise ValueError(
            f"Shuffling needs rows of several images, but {largest} of {len(images)} rows show {image}: "
            "take more rows, or rows of more images."
        )
    # Entries of one image side by side, images in random order: a turn by the largest group's size leaves every group.
    names = sorted(counts)
    random.Random(seed).shuffle(names)
    rank = {name: i for i, name in enumerate(names)}
    order = sorted(range(len(images)), key=lambda i: rank[images[i]])
    others = [""] * len(images)
    for place, i in enumerate(order):
        others[i] = images[order[(place + largest) % len(order)]]
    return others


def _unanswered(row: dict, picture: Picture) -> dict:
    question, expected = question_and_answer(row)
    if row["conversations"][0]["value"].count("<image>") != 1:
        raise ValueError(f"Row {row['id']!r} should hold <image> once in its question, got {question!r}.")
    return {
        "id": row["id"],
        "image": row["image"],
        "question": question,
        "expected": expected,
        "answer": "",
        "kind": question_kind(question, expected),
        "shown": None if picture == "blank" else row["image"],
    }


def _prompt(processor: Any, row: dict) -> str:
    """The row's question in the words of the chat template, character for character as in training."""
    before, _, after = row["conversations"][0]["value"].partition("<image>")
    parts = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": after}]
    content = [part for part in parts if part.get("text") != ""]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _load_picture(folder: Path, answer: dict, processor: Any) -> Image.Image:
    path = Path(folder) / (answer["shown"] or answer["image"])
    if not path.is_file():
        raise FileNotFoundError(f"Row {answer['id']!r} shows {path}, which is not there: is `images` the right folder?")
    with Image.open(path) as image:
        if answer["shown"] is None:
            # The mean colour becomes zero after normalising: the emptiest input the encoder can be given.
            red, green, blue = (round(255 * mean) for mean in processor.image_processor.image_mean)
            return Image.new("RGB", image.size, (red, green, blue))
        return image.convert("RGB")


@torch.no_grad()
def _generate(
    model: Any,
    processor: Any,
    prompts: list[str],
    pictures: list[Image.Image],
    max_new_tokens: int,
    autocast: torch.dtype | None,
) -> list[str]:
    bos = processor.tokenizer.bos_token
    inputs = processor(
        text=prompts,
        images=pictures,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        # Most templates write the first token themselves; the model was not trained to see it twice.
        add_special_tokens=not (bos and prompts[0].startswith(bos)),
    )
    inputs = inputs.to(model.device, model.dtype)  # the dtype reaches the pixels only
    # A beam or a temperature left in the model's generation settings would make the score another one.
    greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    with torch.autocast(model.device.type, dtype=autocast) if autocast else nullcontext():
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **greedy)
    new = ids[:, inputs["input_ids"].shape[1] :]  # [batch, new tokens]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
