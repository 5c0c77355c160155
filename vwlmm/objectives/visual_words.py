"""The visual-word objective: next-token loss on the answer, and next-visual-word loss on the image.

Source: "Multi-modal Auto-regressive Modeling via Visual Words" (arXiv 2403.07720); where paper and released code leave a
choice, it is a field of `VisualWordsConfig`.
"""

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vwlmm import functional

TARGETS = ("visual_words", "language_model")
DIVERGENCES = ("kl", "cross_entropy")


@dataclass
class VisualWordsConfig:
    """What is compared with what, and how much each term counts.

    Args:
        target: which side is given. `visual_words` trains the LLM towards the patches' visual words, KL(q ‖ p), stage 4;
            `language_model` trains the VM head towards what the LLM predicts, KL(p ‖ q), stage 3.
        detach_target: True gives the target side no gradient. False is the released code, gradient for gradient.
        divergence: `kl` (released code) or `cross_entropy`; with a detached target both have the same gradient.
        weights: of the terms `lm` (next token, per scored token) and `vm` (next visual word, per scored patch). A term of
            weight 0 is not computed.
    """

    target: str = "visual_words"
    detach_target: bool = True
    divergence: str = "kl"
    weights: dict[str, float] = field(default_factory=lambda: {"lm": 1.0, "vm": 1.0})

    def __post_init__(self) -> None:
        for name, value, known in (("target", self.target, TARGETS), ("divergence", self.divergence, DIVERGENCES)):
            if value not in known:
                raise ValueError(f"objective.{name} is one of {', '.join(known)}: got {value!r}.")
        unknown = set(self.weights) - {"lm", "vm"}
        if unknown or any(weight < 0 for weight in self.weights.values()):
            raise ValueError(f"objective.weights gives lm and vm a weight of at least 0: got {self.weights}.")
        self.weights = {"lm": 1.0, "vm": 1.0} | {name: float(weight) for name, weight in self.weights.items()}
        if not any(self.weights.values()):
            raise ValueError("objective.weights are all 0: nothing would be learned.")
        if not self.detach_target and self.divergence == "cross_entropy":
            warnings.warn(
                "objective: cross_entropy with detach_target: false rewards a target that sharpens on the commonest "
                "prediction, and collapses: use divergence: kl (the released code), or detach the target, and watch "
                "visual_word_entropy.",
                stacklevel=2,
            )


class VisualWords:
    """Next-token and next-visual-word terms over rows that a model has gathered; holds no parameters, sees no model.

    Notation of the paper: `z` the LLM's logits at a position, `v` the VM head's logits of the feature at the next one,
    p = softmax(z), q = softmax(v).
    """

    def __init__(self, config: VisualWordsConfig | None = None) -> None:
        self.config = config or VisualWordsConfig()

    def positions(self, labels: Tensor, is_image: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Where the hidden state at t is scored against t + 1, by term.

        Args:
            labels: `[batch, seq]`, −100 where nothing is scored.
            is_image: `[batch, seq]`, True at image tokens.
            attention_mask: `[batch, seq]`, True where there is a token.

        Returns:
            `lm` and `vm`, each `[batch, seq − 1]` bool. The token before an image predicts its first patch; a patch at the
            very start of a sequence has nothing before it and is not scored.
        """
        both_attended = attention_mask[:, :-1] & attention_mask[:, 1:]
        positions = {"lm": (labels[:, 1:] != -100) & both_attended, "vm": is_image[:, 1:] & both_attended}
        return {name: mask if self.config.weights[name] else torch.zeros_like(mask) for name, mask in positions.items()}

    def __call__(
        self,
        *,
        lm_weight: Tensor,
        vm_weight: Tensor,
        text_hidden: Tensor,
        text_labels: Tensor,
        visual_hidden: Tensor,
        visual_features: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sums over rows: the two terms, and beside them what is only logged.

        Args:
            lm_weight, vm_weight: the two heads, `[vocab, hidden]`.
            text_hidden: hidden states that predict a scored token, `[tokens, hidden]`; text_labels: those tokens `[tokens]`.
            visual_hidden: hidden states that predict an image position, `[patches, hidden]`.
            visual_features: the projector's features at those positions, `[patches, hidden]`.

        Returns:
            sums that learn (`lm`, `vm`) and detached sums over the patches (`kl`, `visual_word_entropy` in nats, whose fall
            towards 0 shows a collapse). A sum over no rows is a connected 0.
        """
        visual = functional.visual_word_terms(
            visual_hidden,
            lm_weight,
            visual_features,
            vm_weight,
            target=self.config.target,
            detach_target=self.config.detach_target,
            divergence=self.config.divergence,
            reduction="sum",
        )
        language = functional.language_model_loss(text_hidden, lm_weight, text_labels, reduction="sum")
        return {"lm": language, "vm": visual.loss}, {"kl": visual.kl, "visual_word_entropy": visual.entropy}

    def combine(
        self, sums: tuple[dict[str, Tensor], dict[str, Tensor]], num_items: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and every term by name, each divided by the rows of the global batch (at least 1)."""
        learned, logged = sums
        means = {name: total / torch.clamp(num_items[name], min=1) for name, total in learned.items()}
        loss = torch.stack([self.config.weights[name] * mean for name, mean in means.items()]).sum()
        patches = torch.clamp(num_items["vm"], min=1)
        terms = {f"{name}_loss": mean.detach() for name, mean in means.items() if self.config.weights[name]}
        if self.config.weights["vm"]:
            terms |= {name: total / patches for name, total in logged.items()}
        return loss, terms

    def heads_that_learn(self, pseudo_image_features: bool) -> set[str]:
        """Which of `lm_head` and `vm_head` a step gives a gradient; with pseudo-image features the VM head feeds the LLM."""
        config = self.config
        visual, live = config.weights["vm"] > 0, not config.detach_target
        language_model_learns = config.weights["lm"] > 0 or (visual and (live or config.target == "visual_words"))
        heads = {"lm_head"} if language_model_learns else set()
        if (visual and (live or config.target == "language_model")) or (
            pseudo_image_features and language_model_learns
        ):
            heads.add("vm_head")
        return heads

    def counted_by(self, term: str) -> str:
        """The count that a logged term is divided by: `lm` for the language loss, `vm` for all that is about patches."""
        return "lm" if term == "lm_loss" else "vm"

    def weigh(self, terms: dict[str, float]) -> float:
        """The loss that logged terms add up to."""
        return sum(weight * terms[f"{name}_loss"] for name, weight in self.config.weights.items() if weight)
