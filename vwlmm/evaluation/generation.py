"""Greedy answers in batches: prompts padded on the left, pictures decoded in threads while the model works.

The batch size changes the speed, not the answers (in fp32; half precision rounds otherwise in another batch, which is why
the batch size stands beside every score).
"""

import copy
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vwlmm.benchmarks import Answer, Question
from vwlmm.data.images import ImageProblem, load_image
from vwlmm.evaluation.prompts import writes_begin_token

AHEAD = 2  # batches that are prepared while the model works on one


class Pictures:
    """The pictures of questions: decoded by several threads, an error names the question.

    Args:
        folder: what names are relative to; None when every picture is given as bytes.
        num_threads: decoders that work at once.
    """

    def __init__(self, folder: Path | None, num_threads: int = 4) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="pictures")

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def load(self, question: Question) -> list[Image.Image]:
        """The pictures of one question, in order.

        Raises:
            ValueError: one cannot be read.
        """
        try:
            return [load_image(p if isinstance(p, bytes) else self._path(p)) for p in question.images]
        except ImageProblem as problem:
            raise ValueError(f"Question {question.id!r}: {problem}") from problem

    def start(self, questions: Sequence[Question]) -> list[Future]:
        """Begins to load the pictures of several questions."""
        return [self.pool.submit(self.load, question) for question in questions]

    def _path(self, name: str) -> Path:
        if self.folder is None:
            raise ValueError(f"A question shows the picture {name}, and no images folder was found.")
        return self.folder / name


class Generator:
    """Answers questions with the likeliest token each time.

    Args:
        model: a model with `generate` on its device.
        processor: its processor.
        pictures: where the questions' pictures are.
        batch_size: questions answered at once.
        max_new_tokens: an answer that has not ended by then is cut.
        model_id: name of the model in the answers file.
        answer_prompt: what the answers file keeps as `prompt` (`Benchmark.answer_prompt`).
        autocast: makes the context that the model computes in (a trainer's, during training).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        pictures: Pictures,
        *,
        batch_size: int,
        max_new_tokens: int,
        model_id: str,
        answer_prompt: Callable[[Question], str] = lambda question: question.prompt,
        autocast: Any = None,
    ) -> None:
        self.model, self.processor, self.pictures = model, processor, pictures
        self.batch_size, self.model_id = batch_size, model_id
        self.answer_prompt = answer_prompt
        self.autocast = autocast
        self.options = greedy(model, processor.tokenizer, max_new_tokens)

    def answers(self, questions: Sequence[Question], texts: Sequence[str]) -> Iterator[list[Answer]]:
        """One answer a question, a batch at a time, the longest prompts first.

        Args:
            texts: the questions as `prompts.render` wrote them.
        """
        # Longest first, so that a batch too large for the memory fails at once and not after most of the work.
        order = sorted(range(len(questions)), key=lambda i: (-len(questions[i].images), -len(texts[i]), i))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        # A tokenizer may not be used by two threads at once, and this one's decodes meanwhile.
        processor = copy.deepcopy(self.processor)
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token  # hidden by the attention mask
        with ThreadPoolExecutor(1, thread_name_prefix="prompts") as preparer:

            def prepare(batch: list[int]) -> Future:
                loading = self.pictures.start([questions[i] for i in batch])
                return preparer.submit(_inputs_of, processor, [texts[i] for i in batch], loading)

            for batch, inputs in _ahead(batches, prepare):
                yield self._generate([questions[i] for i in batch], inputs)

    @torch.no_grad()
    def _generate(self, questions: list[Question], inputs: Any) -> list[Answer]:
        length = inputs["input_ids"].shape[1]
        _check_length(self.model, length, self.options["max_new_tokens"], questions)
        inputs = inputs.to(self.model.device, self.model.dtype)  # the dtype reaches the pixels only
        with self.autocast() if self.autocast else nullcontext():
            ids = self.model.generate(**inputs, **self.options)
        new = ids[:, length:]  # [batch, new tokens]
        texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        ends = torch.isin(new, torch.tensor(self.options["eos_token_id"], device=new.device)).any(1).tolist()
        return [
            {
                "question_id": question.id,
                "prompt": self.answer_prompt(question),
                "text": text.strip(),
                "answer_id": answer_id(self.model_id, question.id, text.strip()),
                "model_id": self.model_id,
                "metadata": {} if ended else {"cut": True},
            }
            for question, text, ended in zip(questions, texts, ends, strict=True)
        ]


def _ahead(batches: list[list[int]], prepare: Callable[[list[int]], Future]) -> Iterator[tuple[list[int], Any]]:
    """Each batch with what was prepared for it, the next ones being prepared meanwhile."""
    todo = iter(batches)
    waiting = deque((batch, prepare(batch)) for batch in itertools.islice(todo, AHEAD))
    try:
        while waiting:
            batch, prepared = waiting.popleft()
            ready = prepared.result()
            waiting.extend((following, prepare(following)) for following in itertools.islice(todo, 1))
            yield batch, ready
    finally:
        for _, prepared in waiting:
            prepared.cancel()


def _inputs_of(processor: Any, texts: list[str], loading: list[Future]) -> Any:
    return model_inputs(processor, texts, [picture for future in loading for picture in future.result()])


def model_inputs(processor: Any, texts: list[str], pictures: list[Image.Image]) -> Any:
    """Token ids, mask, positions and pixel values of a batch of prompts, padded on the left."""
    inputs = processor(
        text=texts,
        images=pictures or None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=not writes_begin_token(processor, texts[0]),
    )
    # Counted from each row's first token, so that a row reads the same whatever it is batched with.
    positions = inputs["attention_mask"].long().cumsum(-1) - 1
    inputs["position_ids"] = positions.masked_fill(inputs["attention_mask"] == 0, 0)
    return inputs


def greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> dict[str, Any]:
    """Arguments of `generate` that take the likeliest token each time, whatever the model's own settings say."""
    defaults = model.generation_config
    end = defaults.eos_token_id if defaults.eos_token_id is not None else tokenizer.eos_token_id
    if end is None:
        raise ValueError(
            "The model has no end token, so no answer would end: set eos_token_id in generation_config.json."
        )
    ends = list(end) if isinstance(end, list | tuple) else [end]
    pad = defaults.pad_token_id if defaults.pad_token_id is not None else tokenizer.pad_token_id
    return {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": ends,
        "pad_token_id": ends[0] if pad is None else pad,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        # None: settings for draws, which greedy decoding warns of.
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }


def answer_id(model_id: str, question_id: str, text: str) -> str:
    """A short name of one answer, the same for the same answer."""
    return hashlib.sha256("\0".join((model_id, question_id, text)).encode()).hexdigest()[:22]


def _check_length(model: Any, length: int, max_new_tokens: int, questions: Sequence[Question]) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and length + max_new_tokens > limit:
        raise ValueError(
            f"The model reads {limit} tokens; the longest prompt among questions {questions[0].id!r} to "
            f"{questions[-1].id!r} has {length}, and an answer may have {max_new_tokens} more."
        )
