"""Configuration of a visual-word LLaVA: LlavaConfig plus the VM head's, the projector's and the pseudo-image path's fields."""

from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig


@strict
class VisualWordLlavaConfig(LlavaConfig):
    """LlavaConfig and the fields of the visual-word model (arXiv 2403.07720).

    Args:
        pseudo_image_features: feed the LLM `softmax(vm_head(features)) @ word_embeddings` in place of the projector's
            features. The visual words stay those of the projector's features.
        projector_type: `mlp2x_gelu` (LLaVA-1.5: linear, activation, linear) or `linear`.
        projector_patch_merge: side of the square of neighbouring patches that share one image token; 2 makes one
            token of 2×2 patches, their features concatenated.
        projector_norm: standardise every channel of the vision features before the projector, by the mean and deviation
            measured on the first training pictures, and normalise its output, which starts at the size of the word
            embeddings. Off in LLaVA; a small LLM, or a tower read at a middle layer, learns faster with it.
        contextual_text: feed the LLM its own last hidden states of the text in place of word embeddings, as VLAP's released
            code does. Every generated word then needs the whole text read again, without a cache.

    On disk the `model_type` is `llava`, and plain transformers reads the folder as an ordinary LLaVA, whenever that LLaVA
    gives the same logits (`is_plain_llava`). Otherwise it is `visual_word_llava`, so that a program which does not know
    vwlmm stops instead of answering wrongly.
    """

    model_type = "visual_word_llava"

    if TYPE_CHECKING:  # a configuration by the time anything reads them, never the dict or None of LlavaConfig
        vision_config: Any
        text_config: Any

    pseudo_image_features: bool = False
    projector_type: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    projector_patch_merge: int = 1
    projector_norm: bool = False
    contextual_text: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.projector_patch_merge < 1:
            raise ValueError(
                f"projector_patch_merge is the side of a square of patches, at least 1: got {self.projector_patch_merge}."
            )
        embedding_width = getattr(self.text_config, "word_embed_proj_dim", None)
        if embedding_width not in (None, self.text_config.hidden_size):
            raise ValueError(
                f"The LLM's word embeddings ({embedding_width} wide) and hidden states ({self.text_config.hidden_size}) must be "
                "equally wide, because image features stand among the word embeddings: choose another size of this LLM."
            )

    @property
    def is_plain_llava(self) -> bool:
        """True when transformers' own LlavaForConditionalGeneration gives the same logits from the same folder."""
        return (
            not self.pseudo_image_features
            and not self.contextual_text
            and self.projector_type == "mlp2x_gelu"
            and self.projector_patch_merge == 1
            and not self.projector_norm
            and not getattr(self.vision_config, "num_register_tokens", 0)
            # transformers' LLaVA ties its LM head by a name that OPT's table does not have.
            and not (self.tie_word_embeddings and self.text_config.model_type == "opt")
            # Plain LLaVA looks the image token up before it puts the picture in its place.
            and self.image_token_index < self.text_config.vocab_size
        )

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if self.is_plain_llava:
            output["model_type"] = LlavaConfig.model_type
        for part in ("text_config", "vision_config"):
            # Where a part was once read from is of no use in the folder, and a path of this machine.
            if isinstance(output.get(part), dict):
                output[part].pop("_name_or_path", None)
        return output

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config, unused = super().get_config_dict(*args, **kwargs)
        if config.get("model_type") == LlavaConfig.model_type:
            config["model_type"] = cls.model_type
        return config, unused
