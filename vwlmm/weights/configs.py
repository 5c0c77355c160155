"""From the configuration of a released checkpoint (the LLM's fields and LLaVA's `mm_*` ones in one) to ours."""

from pathlib import Path
from typing import Any

from vwlmm.models import VisualWordLlavaConfig

# Fields that are read here, or say how the checkpoint was trained.
READ = {
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "image_aspect_ratio",
    "mm_projector_type",
    "mm_vision_select_feature",
    "mm_vision_select_layer",
    "mm_vision_tower",
    "mm_use_im_start_end",
}
ROPE = ("rope_theta", "rope_scaling")  # names of older files for what is now rope_parameters
CHAT_TEMPLATES = {"llama": "vicuna_v1", "mistral": "mistral"}


def language_model_type(config: dict[str, Any], where: Path) -> str:
    """`llama` or `mistral`: the released files call both `llava`, and `architectures` tells them apart.

    Raises:
        ValueError: it names neither.
    """
    names = [str(name).lower() for name in config.get("architectures") or []]
    found = [kind for kind in ("mistral", "llama") if any(kind in name for name in names)]
    if config.get("model_type") in ("llama", "mistral"):  # a bare LLM
        found = [config["model_type"]]
    if not found:
        raise ValueError(
            f"{where}: its architectures {config.get('architectures')} name neither Llama nor Mistral, and model_type is "
            f"{config.get('model_type')!r} for both: expected for instance vwLlamaForCausalLM or LlavaMistralForCausalLM."
        )
    return str(found[0])


def is_pseudo_image(config: dict[str, Any]) -> bool:
    """True for the released class whose LLM reads mixtures of word embeddings (vwPifLlamaForCausalLM)."""
    return any("pif" in str(name).lower() for name in config.get("architectures") or [])


def text_config(config: dict[str, Any], where: Path) -> tuple[Any, list[str]]:
    """The LLM's configuration, and the fields of the file that have no place in it."""
    from transformers import LlamaConfig, MistralConfig

    kind = {"llama": LlamaConfig, "mistral": MistralConfig}[language_model_type(config, where)]
    known = set(kind().to_dict()) - READ | set(ROPE)
    fields = {name: value for name, value in config.items() if name in known}
    ours = {"auto_map", "_name_or_path"}  # remote code is never run, and a path of another machine is of no use
    return kind(**{name: value for name, value in fields.items() if name not in ours}), sorted(
        name for name in config if name not in known and name not in READ
    )


def projector_type(config: dict[str, Any]) -> str:
    """Ours for LLaVA's name; LLaVA reads a missing one as `linear`.

    Raises:
        ValueError: deeper projectors, or none at all.
    """
    name = config.get("mm_projector_type", "linear")
    if name not in ("linear", "mlp2x_gelu"):
        raise ValueError(f"mm_projector_type {name!r} has no place in LLaVA: expected mlp2x_gelu or linear.")
    return str(name)


def whole_config(
    released: dict[str, Any], text: Any, vision: Any, *, image_token: int, pseudo_image_features: bool
) -> VisualWordLlavaConfig:
    """Our configuration from the released file's fields and both parts'."""
    select = released.get("mm_vision_select_feature", "patch")
    if select not in ("patch", "cls_patch"):
        raise ValueError(f"mm_vision_select_feature {select!r} is unknown: expected patch or cls_patch.")
    patches = (vision.image_size // vision.patch_size) ** 2
    return VisualWordLlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=image_token,
        image_seq_length=patches + (select == "cls_patch"),
        vision_feature_layer=released.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default" if select == "patch" else "full",
        projector_type=projector_type(released),  # type: ignore[arg-type]  # checked there
        pseudo_image_features=pseudo_image_features,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
