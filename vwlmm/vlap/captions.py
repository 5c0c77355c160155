"""Captions of pictures, and answers to questions after k solved examples, pictures between the text.

Protocols: "A picture of" (LiMBeR, VLAP), "Question: … Answer:" with 0 to k shots (MAGMA, LiMBeR).
"""

from collections.abc import Sequence
from typing import Any

import torch

from vwlmm.data.images import ImageSource, load_image

PROMPT = "A picture of"
Shot = tuple[ImageSource, str, str]  # picture, question, answer


def write_captions(
    model: Any,
    processor: Any,
    images: Sequence[ImageSource],
    *,
    prompt: str = PROMPT,
    max_new_tokens: int = 20,
    batch_size: int = 32,
    **generate: Any,
) -> list[str]:
    """One caption a picture, greedy unless `generate` (arguments of `model.generate`) says otherwise."""
    texts = [f"{processor.image_token}{prompt}"] * len(images)
    return _generate(model, processor, texts, [[image] for image in images], max_new_tokens, batch_size, generate)


def answer_questions(
    model: Any,
    processor: Any,
    questions: Sequence[tuple[ImageSource, str]],
    *,
    shots: Sequence[Shot] = (),
    max_new_tokens: int = 10,
    batch_size: int = 8,
    **generate: Any,
) -> list[str]:
    """Open-ended answers, each after the same solved examples: picture, question and answer, and so on.

    Args:
        questions: pairs of a picture and a question about it.
        shots: the solved examples, none for zero-shot.

    Raises:
        ValueError: an empty question or an example without an answer.
    """
    if any(not question.strip() or not answer.strip() for _, question, answer in shots):
        raise ValueError("Every example of a k-shot prompt has a question and an answer: one of them is empty.")
    if any(not question.strip() for _, question in questions):
        raise ValueError("A question is empty.")
    token = processor.image_token
    before = "".join(f"{token}Question: {question} Answer: {answer}\n" for _, question, answer in shots)
    texts = [f"{before}{token}Question: {question} Answer:" for _, question in questions]
    pictures = [[*(image for image, _, _ in shots), image] for image, _ in questions]
    answers = _generate(model, processor, texts, pictures, max_new_tokens, batch_size, generate)
    return [answer.split("\n", 1)[0].strip() for answer in answers]


@torch.inference_mode()
def _generate(
    model: Any,
    processor: Any,
    texts: list[str],
    pictures: list[list[ImageSource]],
    max_new_tokens: int,
    batch_size: int,
    options: dict[str, Any],
) -> list[str]:
    bos, answers = processor.tokenizer.bos_token or "", []
    for start in range(0, len(texts), batch_size):
        opened = [load_image(image) for row in pictures[start : start + batch_size] for image in row]
        batch = [bos + text for text in texts[start : start + batch_size]]
        inputs = processor(images=opened, text=batch, padding=True, add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        ids = model.generate(
            **inputs,
            **{
                "do_sample": False,
                "max_new_tokens": max_new_tokens,
                "eos_token_id": end_tokens(model, processor),
                **options,
            },
        )
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(new, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def end_tokens(model: Any, processor: Any) -> list[int]:
    """The tokens that end a text: the generation configuration's, and the one that captions are trained with."""
    known = model.generation_config.eos_token_id
    ends = [known] if isinstance(known, int) else list(known or [])
    return sorted({*ends, processor.tokenizer.eos_token_id})
