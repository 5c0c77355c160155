"""The visual-word LMM: LLaVA with a VM head that turns every image position into a distribution over the vocabulary.

Source: "Multi-modal Auto-regressive Modeling via Visual Words" (arXiv 2403.07720).
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
)

from vwlmm import functional
from vwlmm.models.checksums import write_checksums
from vwlmm.models.configuration import VisualWordLlavaConfig
from vwlmm.models.heads import LossHead, WordEmbedding, as_loss_head, as_word_embedding
from vwlmm.models.pairs import caption_states, gather_pairs, gather_text, head_and_words, put, take
from vwlmm.models.projector import VisualWordProjector

# LLMs that keep rows apart which lie behind one another; each is held against its padded batch in the tests. Others may let
# rows see each other without a word, as OPT does.
PADDING_FREE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "granite", "smollm3")


class HeadObjective(Protocol):
    """What this model asks of an objective: which positions carry which term, and the terms from rows and tables.

    An objective whose positions name `vm` gets rows for LM head and VM head; one that names `pairs` gets the pictures and
    captions of those rows, with LM head and word embeddings, and says in `captions` what a caption's states are.
    """

    def positions(self, labels: Tensor, is_image: Tensor, attention_mask: Tensor) -> dict[str, Tensor]: ...

    def __call__(self, **rows: Tensor) -> "Sums": ...

    def combine(self, sums: "Sums", num_items: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]: ...


Sums = tuple[dict[str, Tensor], dict[str, Tensor]]  # sums that learn, and sums that are only logged, by name


@dataclass
class VisualWordLlavaOutput(LlavaCausalLMOutputWithPast):
    """LLaVA's output, and under an objective the named terms.

    Attributes:
        terms: detached scalars by name, each a sum over its rows divided by the count it was given; they add up over
            micro-batches and ranks to the mean over the global batch.
    """

    terms: dict[str, Tensor] | None = None


class VisualWordLlavaModel(LlavaModel):
    """LlavaModel with our projector, and a word-embedding table that pseudo-image features may mix."""

    config: VisualWordLlavaConfig
    config_class = VisualWordLlavaConfig

    def __init__(self, config: VisualWordLlavaConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = VisualWordProjector(config)
        self.language_model.set_input_embeddings(as_word_embedding(self.language_model.get_input_embeddings()))
        self.post_init()


class VisualWordLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA with a VM head on the projector's output, for every vision tower and decoder LLM that `AutoModel` knows.

    Called without an objective it is LLaVA: the same arguments, the same logits, `generate` and pipelines. Called as
    `model(**batch, objective=objective)` it returns the objective's loss and its named terms and makes no logits.

    Every read of a parameter happens inside the forward of the module that owns it, and under an objective every batch
    runs every module, with or without images, so that ranks of a sharded run never wait for each other.

    Source: arXiv 2403.07720, sections on visual words and pseudo-image features; released code pengts/VW-LMM.
    """

    config: VisualWordLlavaConfig
    config_class = VisualWordLlavaConfig
    # Trainer: the objective divides by the counts of the global batch, so nothing is left to divide.
    accepts_loss_kwargs = True

    def __init__(self, config: VisualWordLlavaConfig) -> None:
        # Not LLaVA's own __init__, which would build a second tower and a second LLM.
        LlavaPreTrainedModel.__init__(self, config)
        text = config.text_config
        self.model = VisualWordLlavaModel(config)
        self.lm_head = LossHead(text.hidden_size, text.vocab_size, bias=False)
        self.vm_head = LossHead(text.hidden_size, text.vocab_size, bias=False)
        # LLaVA names Llama's table; OPT keeps its own one level deeper.
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{self._word_embeddings_name()}.weight"}
        self.post_init()

    def _word_embeddings_name(self) -> str:
        table = self.get_input_embeddings()
        return next(name for name, module in self.model.language_model.named_modules() if module is table)

    def set_output_embeddings(self, new_embeddings: torch.nn.Linear) -> None:
        self.lm_head = as_loss_head(new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> torch.nn.Embedding:
        """Resizes all three vocabulary tables: word embeddings, LM head and VM head stay in step."""
        words = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        vocab = self.config.text_config.vocab_size
        if self.vm_head.out_features != vocab:
            self.vm_head = as_loss_head(self._get_resized_lm_head(self.vm_head, vocab, mean_resizing=mean_resizing))
        return words

    def save_pretrained(  # type: ignore[override]  # the other arguments go through as they are
        self, save_directory: Any, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As in transformers, with the sums of the weight files beside them, so that damage is found when they are loaded."""
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        if is_main_process:
            write_checksums(save_directory)

    def train(self, mode: bool = True) -> "VisualWordLlavaForConditionalGeneration":
        """Training mode for what learns; a module that is wholly frozen stays in eval mode, without dropout."""
        super().train(mode)
        for module in (self.model.vision_tower, self.model.multi_modal_projector, self.model.language_model):
            if mode and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        objective: HeadObjective | None = None,
        num_items: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast | tuple:
        """LLaVA's forward, or with an objective the loss and its terms.

        Args:
            input_ids: `[batch, seq]`, the image token once for every image token of the projector.
            pixel_values: `[images, 3, height, width]`, all images of the batch in reading order; None without images.
            attention_mask: `[batch, seq]`, True or 1 where there is a token. A batch without padding is one sequence of
                rows behind one another, with `position_ids` `[1, seq]` that begin at 0 in each and no mask.
            labels: `[batch, seq]` token ids, −100 where nothing is scored.
            objective: an objective of `vwlmm.objectives`.
            num_items: by term, how many rows the global batch has; this batch's own counts when None.
        """
        if objective is not None:
            if input_ids is None or labels is None:
                raise ValueError("A model with an objective needs input_ids and labels (−100 where nothing is scored).")
            return self._objective_forward(
                input_ids, pixel_values, attention_mask, labels, objective, num_items, kwargs
            )
        image_token_in_tables = self.config.image_token_id < self.config.text_config.vocab_size
        own_embeddings = self.config.pseudo_image_features or self.config.contextual_text or not image_token_in_tables
        is_text = input_ids is not None and self.config.contextual_text
        if own_embeddings and (pixel_values is not None or is_text):
            if input_ids is None:
                raise ValueError("Pictures are placed by the image tokens of input_ids: pass those with pixel_values.")
            cache = kwargs.get("past_key_values")
            if is_text and cache is not None and cache.get_seq_length():
                raise ValueError(
                    "contextual_text reads the whole text anew for every word: generate with use_cache=False."
                )
            kwargs["inputs_embeds"] = self._embed(input_ids, pixel_values, attention_mask)[1]
            input_ids = pixel_values = None
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            labels=labels,
            **kwargs,
        )

    def pseudo_image_features(self, features: Tensor) -> Tensor:
        """The expected word embedding of each image position under its visual word: `softmax(vm_head(f)) @ E`.

        Shapes: `[rows, hidden]` -> `[rows, hidden]`; no `[rows, vocab]` matrix is held.

        Raises:
            ValueError: the LLM's embedding is not a plain table (Gemma scales it).
        """
        words = self.get_input_embeddings()
        if not isinstance(words, WordEmbedding):
            raise ValueError(
                f"Pseudo-image features mix the rows of a plain word-embedding table; this LLM has a {type(words).__name__}."
            )

        def mix(vm_weight: Tensor, features: Tensor) -> Tensor:
            return words(
                features, use=lambda table, features: functional.pseudo_image_features(features, vm_weight, table)
            )

        return self.vm_head(features, use=mix)

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the LLM is fed for a text, `[batch, seq, hidden]`; at image tokens, whatever: features take their place.

        Word embeddings, or with `contextual_text` the last hidden states of the text, read without the pictures between.
        """
        _, is_image, attended = self._masks(input_ids, attention_mask, input_ids)
        # An image token may lie outside the tables (published checkpoints keep 32,000 words).
        words = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if not self.config.contextual_text:
            return words
        places, valid = gather_text(attended & ~is_image)
        with torch.no_grad():
            states = self._text_states(take(words, places), valid)
        return put(words, places, valid, states)

    def text_states(self, input_ids: Tensor, attention_mask: Tensor, captions: str) -> tuple[Tensor, Tensor]:
        """Each text by itself, without a gradient: states `[batch, longest, hidden]` and ids, −100 where padded.

        Args:
            captions: `contextual` for the LLM's last hidden states, `word_embeddings` for those.
        """
        return caption_states(
            input_ids,
            attention_mask.bool(),
            self.get_input_embeddings(),
            self._text_states if captions == "contextual" else None,
            self.config.text_config.bos_token_id,
        )

    def check_padding_free(self) -> None:
        """Stops where rows behind one another in one sequence would see each other.

        Raises:
            ValueError: an LLM that is not known to keep them apart.
        """
        kind = self.config.text_config.model_type
        if kind not in PADDING_FREE:
            raise ValueError(
                f"data.padding_free: rows behind one another are kept apart by {', '.join(PADDING_FREE)}; of {kind} that is "
                "not known: leave padding_free out."
            )

    def count_items(self, batch: dict[str, Tensor], objective: HeadObjective) -> dict[str, Tensor]:
        """By term, how many rows of this batch carry it: what the trainer sums over micro-batches and ranks."""
        masks = self._masks(batch["input_ids"], batch.get("attention_mask"), batch["labels"])
        positions = _within_rows(objective.positions(*masks), batch.get("position_ids"))
        return {name: mask.sum() for name, mask in positions.items()}

    def _masks(self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return labels, input_ids == self.config.image_token_id, attended.bool()

    def _objective_forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor,
        objective: HeadObjective,
        num_items: dict[str, Tensor] | None,
        kwargs: dict[str, Any],
    ) -> VisualWordLlavaOutput:
        if attention_mask is None and kwargs.get("position_ids") is not None:
            self.check_padding_free()
        features, embeddings = self._embed(input_ids, pixel_values, attention_mask)
        kwargs.setdefault("use_cache", False)
        hidden = self.model.language_model(inputs_embeds=embeddings, attention_mask=attention_mask, **kwargs)[0]
        masks = self._masks(input_ids, attention_mask, labels)
        positions = _within_rows(objective.positions(*masks), kwargs.get("position_ids"))
        is_image = masks[1]
        text_labels = labels[:, 1:][positions["lm"]]
        text_hidden = hidden[:, :-1][positions["lm"]]
        if "pairs" in positions:
            images = 0 if pixel_values is None else len(pixel_values)
            pairs = gather_pairs(self, input_ids, masks, positions["pairs"], features, images, objective)
            sums = head_and_words(self, objective, text_labels, text_hidden, *pairs)
        else:
            # Logits at t are about t + 1. Features lie in reading order, one for each image token.
            visual = torch.zeros_like(is_image)
            visual[:, 1:] = positions["vm"]
            rows = {
                "text_hidden": text_hidden,
                "visual_hidden": hidden[:, :-1][positions["vm"]],
                "visual_features": features[visual[is_image]],
            }
            sums = self._both_heads(objective, text_labels, **rows)
        counts = {name: mask.sum() for name, mask in positions.items()} if num_items is None else num_items
        loss, terms = objective.combine(sums, counts)
        return VisualWordLlavaOutput(loss=loss, terms=terms)

    def _embed(
        self, input_ids: Tensor, pixel_values: Tensor | None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The projector's features `[image tokens, hidden]` and the LLM's input embeddings `[batch, seq, hidden]`.

        A batch without images sends a blank one through tower, projector and VM head and uses none of it: every rank
        runs every module, which sharded training needs, and its gradients are zeros.
        """
        is_image = input_ids == self.config.image_token_id
        blank = pixel_values is None or len(pixel_values) == 0
        if blank and is_image.any():
            raise ValueError(f"The batch has {int(is_image.sum())} image tokens and no pixel_values: pass the images.")
        words = self.embed_text(input_ids, attention_mask)
        pixels = words.new_zeros(self._blank_image_shape()) if pixel_values is None or blank else pixel_values
        features = torch.cat(self.get_image_features(pixels, return_dict=True).pooler_output)
        given = self.pseudo_image_features(features) if self.config.pseudo_image_features else features
        if blank:
            return features[:0], words + given[:0].sum().to(words.dtype)
        if is_image.sum() != len(given):
            raise ValueError(
                f"The batch has {int(is_image.sum())} image tokens for {len(given)} image features "
                f"({len(pixels)} images): the processor and the model count the tokens of an image differently."
            )
        return features, words.masked_scatter(is_image.unsqueeze(-1), given.to(words.dtype))

    def _text_states(self, embeddings: Tensor, attended: Tensor) -> Tensor:
        """The LLM's last hidden states of text alone, `[batch, seq, hidden]`, padded on the right."""
        return self.model.language_model(
            inputs_embeds=embeddings, attention_mask=attended.long(), use_cache=False
        ).last_hidden_state

    def _blank_image_shape(self) -> tuple[int, int, int, int]:
        """`[1, channels, height, width]` of an image as the processor makes it, at most as large as the tower's own."""
        vision = self.config.vision_config
        side = math.isqrt(self.config.image_seq_length) * self.config.projector_patch_merge * vision.patch_size
        side = min(side, vision.image_size)
        return 1, getattr(vision, "num_channels", 3), side, side

    def _both_heads(self, objective: HeadObjective, text_labels: Tensor, **rows: Tensor) -> Sums:
        """Calls the objective inside the forwards of both heads: one call of each a step, rows positional."""

        def inside_lm_head(lm_weight: Tensor, text: Tensor, hidden: Tensor, features: Tensor) -> Sums:
            return self.vm_head(
                features,
                hidden,
                text,
                use=lambda vm_weight, features, hidden, text: objective(
                    lm_weight=lm_weight,
                    vm_weight=vm_weight,
                    text_hidden=text,
                    text_labels=text_labels,
                    visual_hidden=hidden,
                    visual_features=features,
                ),
            )

        return self.lm_head(rows["text_hidden"], rows["visual_hidden"], rows["visual_features"], use=inside_lm_head)


def _within_rows(positions: dict[str, Tensor], position_ids: Tensor | None) -> dict[str, Tensor]:
    """Nothing predicts across the end of a row where several lie behind one another (`position_ids` begin anew)."""
    if position_ids is None:
        return positions
    goes_on = position_ids[:, 1:] == position_ids[:, :-1] + 1
    return {name: mask & goes_on for name, mask in positions.items()}


# A class from outside transformers gets no renaming of LLaVA's old keys, and would load a random LM head without this.
register_checkpoint_conversion_mapping(
    VisualWordLlavaForConditionalGeneration.__name__, get_checkpoint_conversion_mapping("llava"), overwrite=True
)
register_checkpoint_conversion_mapping(
    VisualWordLlavaModel.__name__, get_checkpoint_conversion_mapping("LlavaModel"), overwrite=True
)

AutoConfig.register(VisualWordLlavaConfig.model_type, VisualWordLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(VisualWordLlavaConfig, VisualWordLlavaForConditionalGeneration, exist_ok=True)
