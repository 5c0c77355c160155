"""How likely a model finds given continuations of a prompt: the sum of the log-probabilities of their tokens.

The prompt with its pictures is read once; only where the options differ is read again, several at a time.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vwlmm.benchmarks import Question
from vwlmm.data.encode import num_image_tokens
from vwlmm.evaluation.generation import Pictures
from vwlmm.evaluation.prompts import render, render_answered, template_of, writes_begin_token


class LikelihoodRanker:
    """Scores options behind a question's prompt; fulfils `benchmarks.engines.Ranker`.

    Args:
        model: a LLaVA model on its device.
        processor: its processor, with a fast tokenizer.
        pictures: where the questions' pictures are.
        batch_size: options scored at once.
        completion: the prompt is text to go on with, not a chat turn.
    """

    def __init__(self, model: Any, processor: Any, pictures: Pictures, *, batch_size: int, completion: bool) -> None:
        self.model, self.processor, self.pictures = model, processor, pictures
        self.batch_size, self.completion = max(1, batch_size), completion
        self.template = template_of(processor, completion)

    @torch.no_grad()
    def rank(self, question: Question, options: Sequence[str]) -> list[float]:
        """One summed log-probability an option, in the order given.

        An option is written as the template writes an answer; scored are the tokens that hold text behind the prompt,
        not the end token.

        Raises:
            ValueError: there are no options, or one is empty.
        """
        if not options or any(not option.strip() for option in options):
            raise ValueError(
                f"Question {question.id!r}: expected options to rank, each with text, got {list(options)!r}."
            )
        prompt = render(question, self.processor, self.template)
        rows = [self._tokens(prompt, self._text(question, prompt, option)) for option in options]
        shared = _shared_length([ids for ids, _ in rows], [first for _, first in rows])
        logits, cache = self._read_prompt(rows[0][0][:shared], question)
        scores = []
        for start in range(0, len(rows), self.batch_size):
            scores += self._score(rows[start : start + self.batch_size], shared, logits, cache)
        return scores

    def _text(self, question: Question, prompt: str, option: str) -> str:
        if self.completion:
            return prompt + option
        return render_answered(question, option, self.processor, self.template)

    def _tokens(self, prompt: str, text: str) -> tuple[list[int], int]:
        """Token ids with every image token repeated, and the place of the option's first token."""
        image = self.processor.image_token
        repeated = image * num_image_tokens(self.processor)
        begins = len(prompt.replace(image, repeated))
        encoding = self.processor.tokenizer(
            text.replace(image, repeated),
            add_special_tokens=not writes_begin_token(self.processor, text),
            return_offsets_mapping=True,
        )
        ids, ends = list(encoding["input_ids"]), [end for _, end in encoding["offset_mapping"]]
        # Tokens that a tokenizer appends by itself hold no text: their end is 0.
        while ends and ends[-1] == 0:
            ids.pop()
            ends.pop()
        first = next((place for place, end in enumerate(ends) if end > begins), len(ids))
        return ids, first

    def _read_prompt(self, ids: list[int], question: Question) -> tuple[Tensor, Any]:
        """Logits behind the last shared token, `[vocab]`, and the cache of all shared tokens."""
        images = self.pictures.load(question)
        pixels = {}
        if images:
            pixels = dict(self.processor.image_processor(images, return_tensors="pt"))
            pixels = {name: value.to(self.model.device, self.model.dtype) for name, value in pixels.items()}
        output = self.model(input_ids=torch.tensor([ids], device=self.model.device), **pixels, use_cache=True)
        return output.logits[0, -1].float(), output.past_key_values

    def _score(self, rows: list[tuple[list[int], int]], shared: int, logits: Tensor, cache: Any) -> list[float]:
        rest = [ids[shared:] for ids, _ in rows]
        width = max(map(len, rest))
        pad = self.processor.tokenizer.pad_token_id or 0  # behind every token that is scored, so it is seen by none
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rest], device=logits.device)  # [batch, width]
        is_option = torch.tensor(
            [
                [shared + k >= first and k < len(row) for k in range(width)]
                for row, (_, first) in zip(rest, rows, strict=True)
            ],
            device=logits.device,
        )
        before = logits.expand(len(rows), 1, -1)  # what the shared tokens predict comes first
        if width > 1:
            copied = copy.deepcopy(cache)
            copied.batch_repeat_interleave(len(rows))
            output = self.model(
                input_ids=ids[:, :-1],
                past_key_values=copied,
                attention_mask=torch.ones(len(rows), shared + width - 1, dtype=torch.long, device=logits.device),
                position_ids=torch.arange(shared, shared + width - 1, device=logits.device).expand(len(rows), -1),
                use_cache=True,
            )
            before = torch.cat([before, output.logits.float()], dim=1)  # [batch, width, vocab]
        chosen = before.log_softmax(-1).gather(2, ids.unsqueeze(-1)).squeeze(-1)  # [batch, width]
        return (chosen * is_option).sum(1).tolist()


def _shared_length(rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> int:
    """How many tokens all rows begin with; the first token of every option is left to be scored."""
    longest = min(min(firsts), min(map(len, rows)) - 1)
    return next((place for place in range(longest) if len({row[place] for row in rows}) > 1), longest)
