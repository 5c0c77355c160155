"""VLAP: pictures and captions predict the words that the other is assigned, beside a captioning loss through the frozen LLM.

Source: "Bridging Vision and Language Spaces with Assignment Prediction" (arXiv 2404.09632). The released code differs from
the text in places; where it does, the choice is a field of `VLAPConfig`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vwlmm import functional
from vwlmm.objectives.word_prior import read_word_prior, word_mask

CAPTIONS = ("contextual", "word_embeddings")
TERMS = {"lm": 1.0, "assignment": 0.1}


@dataclass
class VLAPConfig:
    """What is assigned to what, and how much each term counts.

    Args:
        mode: `sinkhorn_prior` (optimal transport with the words' frequencies, which the paper's text asks for),
            `sinkhorn_uniform` (SwAV) or `released` (what the published code computes): see `functional.Assignment`.
        prior: file of `vwlmm data word-prior`; not for `sinkhorn_uniform`.
        prior_smoothing: added to every word's count.
        prior_power: of the smoothed counts; 1 is their frequency, 0 is uniform.
        prior_temperature: of the softmax over frequencies in `released`.
        epsilon, iterations, strength: of the transport, see `functional.Assignment`.
        temperature: of the predicted word distribution.
        captions: what a caption's representation is the mean of: `contextual` last hidden states of the LLM (published),
            or `word_embeddings`.
        queue: pairs of past batches, kept on every rank, that share the words out with the batch. The batch is far smaller
            than the vocabulary, and without a queue it must take up the mass of every word there is.
        both_directions: False leaves out the half in which captions predict the images' words. It has no gradient, because
            LLM and word embeddings are given: without it the same model is learned in less time, and half the logged
            number is missing.
        weights: of the terms `lm` (captioning, per scored token) and `assignment` (per pair). With assignment: 0 what is
            left is captioning alone, as in LiMBeR and MAGMA.
    """

    mode: str = "sinkhorn_prior"
    prior: str | None = None
    prior_smoothing: float = 1.0
    prior_power: float = 1.0
    prior_temperature: float = 0.25
    epsilon: float = 0.01
    iterations: int = 3
    strength: float = 1.0
    temperature: float = 0.01
    captions: str = "contextual"
    queue: int = 0
    both_directions: bool = True
    weights: dict[str, float] = field(default_factory=lambda: dict(TERMS))

    def __post_init__(self) -> None:
        unknown = set(self.weights) - set(TERMS)
        if unknown or any(weight < 0 for weight in self.weights.values()):
            raise ValueError(f"objective.weights gives lm and assignment a weight of at least 0: got {self.weights}.")
        self.weights = TERMS | {name: float(weight) for name, weight in self.weights.items()}
        if not any(self.weights.values()):
            raise ValueError("objective.weights are all 0: nothing would be learned.")
        try:
            self.assignment = functional.Assignment(
                self.mode, self.epsilon, self.iterations, self.strength, self.prior_temperature
            )
        except ValueError as problem:
            raise ValueError(f"objective.{problem}") from None
        if self.captions not in CAPTIONS:
            raise ValueError(f"objective.captions is one of {', '.join(CAPTIONS)}: got {self.captions!r}.")
        for name, right in (
            ("temperature", self.temperature > 0),
            ("prior_smoothing", self.prior_smoothing >= 0),
            ("prior_power", self.prior_power >= 0),
            ("queue", self.queue >= 0),
        ):
            if not right:
                least = "above 0" if name == "temperature" else "of at least 0"
                raise ValueError(f"objective.{name} is a number {least}: got {getattr(self, name)!r}.")
        needs_prior = self.weights["assignment"] and self.mode != "sinkhorn_uniform"
        if needs_prior and not self.prior:
            raise ValueError(
                f"objective.prior: mode {self.mode} shares words out by their frequency; name a file, and write it with "
                "`vwlmm data word-prior RECIPE`."
            )
        if self.mode == "released" and self.queue:
            raise ValueError(
                "objective.queue serves the transport; mode released looks at every pair by itself: queue: 0."
            )


class VLAP:
    """Captioning and assignment terms over rows that a model has gathered; sees no model and holds no parameters.

    Its state is the queue of past pairs (empty unless `queue` is set), which a run saves with its checkpoints.
    """

    def __init__(self, config: VLAPConfig | None = None) -> None:
        self.config = config or VLAPConfig(mode="sinkhorn_uniform")
        self.captions = (
            self.config.captions
        )  # what the model makes of the captions: contextual states or word embeddings
        self.tokenizer: Any = None
        self._is_word: Tensor | None = None
        self._prior: Tensor | None = None
        self._queue: tuple[Tensor, Tensor] | None = None

    def prepare(self, tokenizer: Any) -> None:
        """Reads the prior and finds the ids that are no words, before anything is trained.

        Raises:
            FileNotFoundError: no prior where the configuration says.
            ValueError: a prior that was counted with another tokenizer.
        """
        self.tokenizer = tokenizer
        if self.config.weights["assignment"] and self.config.mode != "sinkhorn_uniform":
            self._counts = read_word_prior(Path(str(self.config.prior)), tokenizer)

    def positions(self, labels: Tensor, is_image: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """What is scored, by term: the hidden states at t that predict t + 1, and the rows that are a pair.

        Args:
            labels: `[batch, seq]`, −100 where nothing is scored: the caption's tokens are.
            is_image: `[batch, seq]`, True at image tokens.
            attention_mask: `[batch, seq]`, True where there is a token.

        Returns:
            `lm`, `[batch, seq − 1]` bool, and `pairs`, `[batch]` bool, the rows with a picture.
        """
        scored = (labels[:, 1:] != -100) & attention_mask[:, :-1] & attention_mask[:, 1:]
        positions = {"lm": scored, "pairs": is_image.any(1)}
        kept = {"lm": self.config.weights["lm"], "pairs": self.config.weights["assignment"]}
        return {name: mask if kept[name] else torch.zeros_like(mask) for name, mask in positions.items()}

    def __call__(
        self,
        *,
        lm_weight: Tensor,
        words: Tensor,
        text_hidden: Tensor,
        text_labels: Tensor,
        image_features: Tensor,
        caption_states: Tensor,
        caption_ids: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sums over rows: the two terms, and beside them what is only logged.

        Args:
            lm_weight: the LM head, `[vocab, hidden]`; words: the word embeddings, `[vocab, hidden]`.
            text_hidden: hidden states that predict a scored token, `[tokens, hidden]`; text_labels: those tokens `[tokens]`.
            image_features: the projector's features of each pair's picture, `[pairs, patches, hidden]`.
            caption_states: of each pair's caption, `[pairs, length, hidden]`; caption_ids: its tokens, −100 where padded.

        Returns:
            sums that learn (`lm`, `assignment`) and detached sums over the pairs: the two halves `image_to_caption` and
            `caption_to_image`, `assignment_entropy` in nats, and `assignment_agreement`.
        """
        language = functional.language_model_loss(text_hidden, lm_weight, text_labels, reduction="sum")
        if not self.config.weights["assignment"]:
            return {"lm": language, "assignment": image_features.sum() * 0.0}, {}
        is_word, prior = self._vocabulary(words)
        image = F.normalize(image_features.float().mean(1), dim=-1)
        text = F.normalize(mean_word(caption_states.float(), caption_ids, is_word), dim=-1)
        terms = functional.assignment_loss(
            image,
            text,
            words,
            assignment=self.config.assignment,
            temperature=self.config.temperature,
            prior=prior,
            is_word=is_word,
            past=self._queue,
            both_directions=self.config.both_directions,
            over_ranks=functional.logsumexp_over_ranks,
        )
        if self.config.queue and torch.is_grad_enabled():
            self._remember(image.detach(), text)
        logged = {
            "image_to_caption": terms.image.detach(),
            "caption_to_image": terms.text,
            "assignment_entropy": terms.entropy,
            "assignment_agreement": terms.agreement,
        }
        halves = 0.5 * (terms.image + terms.text) if self.config.both_directions else 0.5 * terms.image
        return {"lm": language, "assignment": halves}, logged

    def combine(
        self, sums: tuple[dict[str, Tensor], dict[str, Tensor]], num_items: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and every term by name, each divided by the rows of the global batch (at least 1)."""
        learned, logged = sums
        counts = {"lm": num_items["lm"], "assignment": num_items["pairs"]}
        means = {name: total / torch.clamp(counts[name], min=1) for name, total in learned.items()}
        loss = torch.stack([self.config.weights[name] * mean for name, mean in means.items()]).sum()
        terms = {f"{name}_loss": mean.detach() for name, mean in means.items() if self.config.weights[name]}
        pairs = torch.clamp(num_items["pairs"], min=1)
        return loss, terms | {name: total / pairs for name, total in logged.items()}

    def counted_by(self, term: str) -> str:
        """The count that a logged term is divided by: `lm` for the captioning loss, `pairs` for all else."""
        return "lm" if term == "lm_loss" else "pairs"

    def weigh(self, terms: dict[str, float]) -> float:
        """The loss that logged terms add up to."""
        return sum(weight * terms[f"{name}_loss"] for name, weight in self.config.weights.items() if weight)

    def state_dict(self) -> dict[str, Tensor]:
        """The queue, for a run's checkpoint; empty without one."""
        return {} if self._queue is None else {"images": self._queue[0].cpu(), "texts": self._queue[1].cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes a queue up again."""
        self._queue = (state["images"], state["texts"]) if state else None

    def _vocabulary(self, words: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Which ids are words and how much mass each has, `[vocab]` both; made once, when the table is known."""
        if self.tokenizer is not None and (self._is_word is None or len(self._is_word) != len(words)):
            self._is_word = word_mask(self.tokenizer, len(words))
            if self.config.mode != "sinkhorn_uniform":
                smooth = {"smoothing": self.config.prior_smoothing, "power": self.config.prior_power}
                self._prior = self._counts.masses(len(words), **smooth)
        if self._is_word is not None:
            self._is_word = self._is_word.to(words.device)
        if self._prior is not None:
            self._prior = self._prior.to(words.device)
        return self._is_word, self._prior

    def _remember(self, image: Tensor, text: Tensor) -> None:
        """The newest pairs of this rank, at most `queue`."""
        before = (image[:0], text[:0]) if self._queue is None else self._queue
        joined = [
            torch.cat([now, past.to(now)])[: self.config.queue] for now, past in zip((image, text), before, strict=True)
        ]
        self._queue = (joined[0], joined[1])


def mean_word(states: Tensor, ids: Tensor, is_word: Tensor | None) -> Tensor:
    """The mean state of each caption's words, `[pairs, hidden]`; of all its tokens where none of them is a word."""
    mask = ids >= 0
    if is_word is not None:
        counted = mask & is_word[ids.clamp(min=0)]
        mask = torch.where(counted.any(1, keepdim=True), counted, mask)
    # The mean's divisor vanishes in the cosine.
    return (states * mask[..., None]).sum(1)
