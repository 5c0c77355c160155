"""A new visual-word LMM from a vision tower and an LLM: hub ids or folders, joined by a fresh projector and VM head.

model, processor = assemble("openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5", chat_template="vicuna_v1")
"""

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from vwlmm.data.templates import chat_template_for
from vwlmm.models.configuration import VisualWordLlavaConfig
from vwlmm.models.heads import LossHead, as_loss_head, as_word_embedding
from vwlmm.models.projector import VisualWordProjector
from vwlmm.models.visual_word_llava import VisualWordLlavaForConditionalGeneration

IMAGE_TOKEN = "<image>"
VM_HEAD_STARTS = ("random", "lm_head", "word_embeddings")


def assemble(
    vision_tower: str | Path,
    language_model: str | Path,
    *,
    chat_template: str,
    vm_head_init: str = "random",
    projector_type: str = "mlp2x_gelu",
    projector_patch_merge: int = 1,
    projector_norm: bool = False,
    pseudo_image_features: bool = False,
    contextual_text: bool = False,
    keep_class_token: bool = False,
    vision_feature_layer: int = -2,
    image_aspect_ratio: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[VisualWordLlavaForConditionalGeneration, LlavaProcessor]:
    """Joins a vision tower and an LLM into an untrained visual-word model, and makes the processor that goes with it.

    Args:
        vision_tower, language_model: hub ids or folders that `AutoModel` and `AutoModelForCausalLM` read.
        chat_template: a name of `vwlmm.data.templates.CHAT_TEMPLATES`, or a Jinja template with `{% generation %}` spans.
        vm_head_init: `random` (the released code), `lm_head` or `word_embeddings` (copies of those tables).
        projector_type, projector_patch_merge, projector_norm, pseudo_image_features, contextual_text: see
            `VisualWordLlavaConfig`.
        keep_class_token: project the tower's class token too, as VLAP does; LLaVA leaves it out.
        vision_feature_layer: the hidden state of the tower that is projected; −2 in LLaVA.
        image_aspect_ratio: `pad` pads to a square with the mean colour (LLaVA-1.5); None leaves the processor as it is.
        dtype: of the weights.

    The random parts (projector, random VM head, the new word `<image>`) come from torch's global seed.

    Raises:
        ValueError: an unknown `vm_head_init`, a tower whose hidden states are not a class token and patches, an LLM whose
            head has a bias.
    """
    if vm_head_init not in VM_HEAD_STARTS:
        raise ValueError(f"vm_head_init is one of {', '.join(VM_HEAD_STARTS)}: got {vm_head_init!r}.")
    config, processor = configure(
        vision_tower,
        language_model,
        chat_template=chat_template,
        projector_type=projector_type,
        projector_patch_merge=projector_patch_merge,
        projector_norm=projector_norm,
        pseudo_image_features=pseudo_image_features,
        contextual_text=contextual_text,
        keep_class_token=keep_class_token,
        vision_feature_layer=vision_feature_layer,
        image_aspect_ratio=image_aspect_ratio,
    )
    tower_class = _tower(str(vision_tower))[0]
    tower = tower_class.from_pretrained(str(vision_tower), config=config.vision_config, dtype=dtype)
    llm = AutoModelForCausalLM.from_pretrained(str(language_model), config=config.text_config, dtype=dtype)
    model = _join(config, tower, llm, dtype)
    if len(processor.tokenizer) > config.text_config.vocab_size:
        model.resize_token_embeddings(len(processor.tokenizer))
    initialise_vm_head(model, vm_head_init)  # last, so that a copied table is copied with the new word
    model.generation_config = llm.generation_config
    if contextual_text:
        model.generation_config.use_cache = False
    return model, processor


def configure(
    vision_tower: str | Path,
    language_model: str | Path,
    *,
    chat_template: str,
    projector_type: str = "mlp2x_gelu",
    projector_patch_merge: int = 1,
    projector_norm: bool = False,
    pseudo_image_features: bool = False,
    contextual_text: bool = False,
    keep_class_token: bool = False,
    vision_feature_layer: int = -2,
    image_aspect_ratio: str | None = None,
) -> tuple[VisualWordLlavaConfig, LlavaProcessor]:
    """Configuration and processor of the model that `assemble` makes of the same arguments; loads no weights."""
    _check_decoder(str(language_model))
    processor, prefix_tokens, num_patches = make_processor(
        vision_tower,
        language_model,
        chat_template=chat_template,
        projector_patch_merge=projector_patch_merge,
        image_aspect_ratio=image_aspect_ratio,
        keep_class_token=keep_class_token,
    )
    config = VisualWordLlavaConfig(
        vision_config=_tower(str(vision_tower))[1],
        text_config=AutoConfig.from_pretrained(str(language_model)).get_text_config(),
        image_token_index=processor.image_token_id,
        image_seq_length=num_patches // projector_patch_merge**2,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="default" if prefix_tokens and not keep_class_token else "full",
        projector_type=projector_type,  # type: ignore[arg-type]  # the configuration checks it
        projector_patch_merge=projector_patch_merge,
        projector_norm=projector_norm,
        pseudo_image_features=pseudo_image_features,
        contextual_text=contextual_text,
    )
    return config, processor


def make_processor(
    vision_tower: str | Path,
    language_model: str | Path,
    *,
    chat_template: str,
    projector_patch_merge: int = 1,
    image_aspect_ratio: str | None = None,
    keep_class_token: bool = False,
) -> tuple[LlavaProcessor, int, int]:
    """The processor of a new model, how many tokens its tower puts before the patches, and its patches; loads no weights."""
    tokenizer = _tokenizer(str(language_model), chat_template)
    image_processor = make_image_processor(str(vision_tower), image_aspect_ratio)
    blank = Image.new("RGB", (64, 64))
    pixels = image_processor(images=blank, return_tensors="pt")["pixel_values"]
    tower_class, tower_config = _tower(str(vision_tower))
    prefix_tokens, num_patches = _tower_tokens(tower_class, tower_config, pixels)
    if keep_class_token and (prefix_tokens != 1 or projector_patch_merge > 1):
        raise ValueError(
            f"keep_class_token needs a tower with one class token and no patch merging, got {prefix_tokens} tokens before the "
            f"patches and projector_patch_merge {projector_patch_merge}."
        )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        # A token stands for a square of merged patches: to the processor that is one larger patch.
        patch_size=tower_config.patch_size * projector_patch_merge,
        vision_feature_select_strategy="default" if prefix_tokens and not keep_class_token else "full",
        num_additional_image_tokens=1 if prefix_tokens else 0,
        chat_template=tokenizer.chat_template,
    )
    return processor, prefix_tokens, num_patches


def initialise_vm_head(model: VisualWordLlavaForConditionalGeneration, start: str) -> None:
    """Starts the VM head `random`, from `lm_head` or from the `word_embeddings`; ZeRO-3's shards are gathered for it."""
    sources = {"lm_head": model.lm_head, "word_embeddings": model.get_input_embeddings()}
    with _gathered([model.vm_head.weight, *(module.weight for module in sources.values())]), torch.no_grad():
        if start == "random":
            model.vm_head.weight.normal_(std=model.config.text_config.initializer_range)
        else:
            model.vm_head.weight.copy_(sources[start].weight)


def _gathered(parameters: list[Any]) -> Any:
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return torch.no_grad()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list({id(p): p for p in parameters}.values()), modifier_rank=0)


def _check_decoder(language_model: str) -> None:
    config = AutoConfig.from_pretrained(language_model)
    if config.is_encoder_decoder:
        raise ValueError(
            f"model.language_model {language_model} is an encoder and a decoder ({config.model_type}); expected a decoder LLM, "
            "in which pictures and answer stand in one sequence: OPT, Llama, Mistral, Qwen, GPT-NeoX, …"
        )


def _tower(source: str) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Class and configuration of the vision half of `source`; CLIP's and SigLIP's text half is left behind."""
    config = AutoConfig.from_pretrained(source)
    config = getattr(config, "vision_config", config)
    with torch.device("meta"):
        return type(AutoModel.from_config(config)), config


def _tower_tokens(tower_class: type[PreTrainedModel], config: PreTrainedConfig, pixels: Tensor) -> tuple[int, int]:
    """How many tokens the tower puts before the patches, and how many patches it makes of one processed image."""
    with torch.device("meta"), torch.no_grad():
        tower = tower_class(config).eval()  # shapes without weights
        states = tower(pixels.to("meta"), output_hidden_states=True, return_dict=True).hidden_states[-1]
    patch = getattr(config, "patch_size", None)
    if states.ndim != 3 or not isinstance(patch, int):
        raise ValueError(
            f"{tower_class.__name__} gives hidden states of shape {tuple(states.shape)}, but a vision tower gives "
            "[images, tokens, dim] over square patches: choose a ViT (CLIP, SigLIP, DINOv2, …)."
        )
    num_patches = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
    expected = 1 + getattr(config, "num_register_tokens", 0)
    prefix = states.shape[1] - num_patches
    if prefix not in (0, expected):
        raise ValueError(
            f"{tower_class.__name__} gives {states.shape[1]} tokens for {num_patches} patches: expected none or "
            f"{expected} more (class and register tokens)."
        )
    if math.isqrt(num_patches) ** 2 != num_patches:
        raise ValueError(f"The image processor makes {num_patches} patches of an image: a square image was expected.")
    return prefix, num_patches


def _join(
    config: VisualWordLlavaConfig,
    tower: PreTrainedModel,
    llm: PreTrainedModel,
    dtype: torch.dtype,
) -> VisualWordLlavaForConditionalGeneration:
    """The parts under one roof; built on the meta device first, so that a 7B model is never made twice."""
    with torch.device("meta"):
        model = VisualWordLlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = llm.base_model
    model.set_input_embeddings(as_word_embedding(model.get_input_embeddings()))
    model.lm_head = as_loss_head(llm.get_output_embeddings())
    model.model.multi_modal_projector = VisualWordProjector(config).to(dtype)
    model.model.multi_modal_projector.apply(model._init_weights)
    if config.projector_norm:
        # Image features begin as large as words: a small LLM can hardly move a token that is many times larger.
        words: Any = model.get_input_embeddings()
        size = words.weight.detach().float().square().mean().sqrt()
        torch.nn.init.constant_(model.model.multi_modal_projector.output_norm.weight, float(size))
    text = config.text_config
    model.vm_head = LossHead(text.hidden_size, text.vocab_size, bias=False, dtype=dtype)
    model.tie_weights()
    return model.eval()


def measure_features(model: VisualWordLlavaForConditionalGeneration, pixel_values: Tensor) -> None:
    """Measures what `projector_norm` standardises, on pictures `[images, 3, height, width]` of the training data."""
    projector = model.model.multi_modal_projector
    seen: list[Tensor] = []
    hook = projector.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            for pixels in pixel_values.to(model.device, model.dtype).split(16):
                model.get_image_features(pixels, return_dict=True)
    finally:
        hook.remove()
    projector.norm.measure(torch.cat(seen))


def _tokenizer(source: str, chat_template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        # Llama has no padding token of its own; padded positions are masked, so any known token serves.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.chat_template = chat_template_for(chat_template, tokenizer)
    return tokenizer


def make_image_processor(source: str, image_aspect_ratio: str | None) -> Any:
    """The tower's own image processor, in its PIL form; `pad` turns it into LLaVA's, which pads to a square first."""
    processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    if image_aspect_ratio is None:
        return processor
    if image_aspect_ratio != "pad":
        raise ValueError(f"image_aspect_ratio is pad or left out: got {image_aspect_ratio!r}.")
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    fields = ("image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")
    kept = {name: getattr(processor, name) for name in fields if getattr(processor, name, None) is not None}
    # A padded picture is as large as the tower reads it, with nothing left to crop: DINOv2's processor would cut its edge off.
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    return LlavaImageProcessorPil(**kept, size=size, do_center_crop=False, do_pad=True)
