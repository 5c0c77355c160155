"""A vwlmm model as lmms-eval asks it: chat messages in, text out, answered by the runner of `vwlmm eval`.

lmms-eval --model vwlmm --model_args pretrained=checkpoints/demo/4_visual_words,dtype=float32 --tasks …
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from vwlmm.benchmarks import Question
from vwlmm.data.images import load_image
from vwlmm.evaluation.generation import Generator, Pictures
from vwlmm.evaluation.prompts import render, template_of
from vwlmm.evaluation.runner import LoadedModel
from vwlmm.evaluation.shards import local_device

logger = logging.getLogger(__name__)

CHUNK = 16  # batches whose pictures are held in memory at once
MAX_NEW_TOKENS = 1024  # where a task does not say
UNDERSTOOD = {"max_new_tokens", "do_sample", "temperature", "top_p", "num_beams", "until", "vwlmm_completion"}


class VwlmmChat(lmms):
    """Answers `generate_until` requests.

    Args:
        pretrained: folder or hub id of the model.
        batch_size: questions at once; answers are the same for every one in fp32.
        dtype: of the weights: auto, float32, bfloat16 or float16.
        device: cpu, cuda, …; under a launcher each process takes its own GPU.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size is a whole number of at least 1: got {batch_size!r}.")
        self.batch_size = int(batch_size)
        self.loaded = LoadedModel.load(pretrained, dtype, local_device() or device)
        self.device = self.loaded.model.device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """One text a request, in order; requests with the same settings share batches."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            settings = request.args[2]
            groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(number)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="vwlmm", unit="question", disable=self.rank > 0) as progress:
            for numbers in groups.values():
                size = CHUNK * self.batch_size
                for start in range(0, len(numbers), size):
                    chunk = numbers[start : start + size]
                    for number, text in self._answer({n: requests[n] for n in chunk}).items():
                        answers[number] = text
                    progress.update(len(chunk))
        return answers

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refused: a later round would have to see the earlier answers."""
        raise ValueError("vwlmm answers one round at a time; leave tasks with several rounds out.")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refused: lmms-eval 0.7.3 turns the numbers into text before it scores them."""
        raise ValueError("lmms-eval loses the results of likelihood tasks: use vwlmm eval for ranking (visdial).")

    def _answer(self, requests: dict[int, Any]) -> dict[int, str]:
        settings = next(iter(requests.values())).args[2]
        ignored = sorted(set(settings) - UNDERSTOOD)
        if ignored:
            logger.warning("lmms-eval's settings %s are not vwlmm's and change nothing.", ", ".join(ignored))
        completion = bool(settings.get("vwlmm_completion"))
        pictures = _GivenPictures()
        try:
            questions = [self._question(number, request, pictures, completion) for number, request in requests.items()]
            template = template_of(self.loaded.processor, completion)
            texts = [render(question, self.loaded.processor, template) for question in questions]
            generator = Generator(
                self.loaded.model,
                self.loaded.processor,
                pictures,
                batch_size=self.batch_size,
                max_new_tokens=int(settings.get("max_new_tokens", MAX_NEW_TOKENS)),
                model_id=self.loaded.name,
            )
            generator.options |= _decoding(settings)
            answers = [answer for batch in generator.answers(questions, texts) for answer in batch]
        finally:
            pictures.close()
        return {int(answer["question_id"]): _cut(answer["text"], settings.get("until") or []) for answer in answers}

    def _question(self, number: int, request: Any, pictures: "_GivenPictures", completion: bool) -> Question:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages, found = as_messages(doc_to_messages(self.task_dict[task][split][doc_id]), completion)
        pictures.given[str(number)] = found
        return Question(str(number), messages, tuple(f"{number}/{place}" for place in range(len(found))))


class _GivenPictures(Pictures):
    """Pictures that lmms-eval has opened already, by question id."""

    def __init__(self) -> None:
        super().__init__(None, num_threads=1)
        self.given: dict[str, list[Image.Image]] = {}

    def load(self, question: Question) -> list[Image.Image]:
        return self.given[question.id]


def as_messages(messages: Sequence[Any], completion: bool) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """lmms-eval's messages as ours, and their pictures in order.

    A line break stands between a picture and the text behind it, as LLaVA was trained; ours have it already.

    Raises:
        ValueError: a message shows a video or plays a sound.
    """
    pictures, turns = [], []
    for message in messages:
        content: list[dict[str, Any]] = []
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "image":
                pictures.append(_opened(part["url"]))
                content.append({"type": "image"})
            elif part["type"] == "text":
                text = part["text"]
                behind_picture = bool(content) and content[-1]["type"] == "image"
                gap = "\n" if behind_picture and not completion and not text.startswith("\n") else ""
                content.append({"type": "text", "text": gap + text})
            else:
                raise ValueError(f"vwlmm reads pictures and text; this task gives it {part['type']}.")
        turns.append({"role": message["role"], "content": content})
    return turns, pictures


def _opened(picture: Any) -> Image.Image:
    return picture.convert("RGB") if isinstance(picture, Image.Image) else load_image(Path(str(picture)))


def _decoding(settings: dict[str, Any]) -> dict[str, Any]:
    """Greedy unless the task asks for draws or beams."""
    options: dict[str, Any] = {"num_beams": int(settings.get("num_beams") or 1)}
    temperature = float(settings.get("temperature") or 0)
    if temperature > 0 and settings.get("do_sample", True):
        options |= {"do_sample": True, "temperature": temperature, "top_p": settings.get("top_p")}
    return options


def _cut(text: str, ends: str | list[str]) -> str:
    """The text before the first of the endings."""
    for end in [ends] if isinstance(ends, str) else ends:
        if end:
            text = text.split(end)[0]
    return text
