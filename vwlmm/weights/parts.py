"""A checkpoint understood: where each of our tensors comes from, our configuration, and the processor beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vwlmm.assembly import IMAGE_TOKEN
from vwlmm.data.templates import CHAT_TEMPLATES, chat_template_for
from vwlmm.models import VisualWordLlavaConfig
from vwlmm.weights import configs, layouts
from vwlmm.weights.reading import WeightFiles, open_weights
from vwlmm.weights.report import Report
from vwlmm.weights.sources import Source, local_folder, read_json
from vwlmm.weights.tokenizer import load_tokenizer
from vwlmm.weights.tower import Tower, find_tower

VM_HEAD = "vm_head.weight"


@dataclass
class Wishes:
    """What a checkpoint does not say itself, or should be told otherwise; None leaves it to the checkpoint."""

    vision_tower: str | None = None  # folder or hub id; None: the one that the checkpoint names
    language_model: str | None = None  # of a projector-only file; None: the one that its config.json names
    chat_template: str | None = None  # None: vicuna_v1 for Llama, mistral for Mistral, its own for a llava-hf folder
    pseudo_image_features: bool | None = None  # None: by the checkpoint's class


@dataclass
class Parts:
    """What `convert` needs to know before it reads a tensor.

    Attributes:
        tensors: by our name, the files that hold it and its name there.
        unknown: names that no rule knows.
        folder: of tokenizer.model and generation_config.json.
    """

    report: Report
    tensors: dict[str, tuple[WeightFiles, str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    config: VisualWordLlavaConfig = None  # type: ignore[assignment]  # set by `understand`
    processor: Any = None
    folder: Path = Path()

    def add(self, weights: WeightFiles, rules: layouts.Rules) -> None:
        mapped = layouts.map_names(weights.tensors, rules)
        self.report.ignored |= weights.ignored | mapped.ignored
        self.unknown += mapped.unknown
        for ours, name in mapped.names.items():
            self.tensors[ours] = (weights, name)
            self.report.mapped[name] = ours


def understand(source: Source, wishes: Wishes) -> Parts:
    """Finds every part of a checkpoint.

    Raises:
        FileNotFoundError: the tower or the LLM is neither in the checkpoint nor where it says.
        ValueError: a configuration that this layout does not have.
    """
    return {"flat": _flat, "nested": _nested, "projector": _projector}[source.layout](source, wishes)


def _nested(source: Source, wishes: Wishes) -> Parts:
    """A llava-hf folder, or one of ours."""
    from transformers import AutoProcessor

    parts = Parts(Report("llava-hf folder"), folder=source.folder)
    parts.add(source.weights, layouts.NESTED)
    if VM_HEAD in parts.tensors:
        parts.report.layout = "visual-word LLaVA folder"
    parts.config = VisualWordLlavaConfig.from_pretrained(source.folder)
    if wishes.pseudo_image_features is not None:
        parts.config.pseudo_image_features = wishes.pseudo_image_features
    try:
        processor = parts.processor = AutoProcessor.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as problem:
        raise ValueError(f"{source.folder} holds no processor that transformers reads: {problem}") from None
    # Older llava-hf folders leave the counting of image tokens to the model.
    if processor.patch_size is None:
        processor.patch_size = parts.config.vision_config.patch_size
        processor.vision_feature_select_strategy = parts.config.vision_feature_select_strategy
        processor.num_additional_image_tokens = 1
    _check_words(processor.tokenizer, parts.config)
    if wishes.chat_template or not processor.chat_template:
        kind = parts.config.text_config.model_type
        _set_template(processor, wishes.chat_template or configs.CHAT_TEMPLATES.get(kind, "chatml"), parts)
    elif "generation" not in processor.chat_template:
        parts.report.notes.append(
            "the chat template is kept; it marks no answers, so name one to train with: model.chat_template in the recipe"
        )
    return parts


def _flat(source: Source, wishes: Wishes) -> Parts:
    """The released VW-LMM and the original LLaVA: an LLM's folder with the other parts inside."""
    parts = Parts(Report("original LLaVA"), folder=source.folder)
    parts.add(source.weights, layouts.FLAT)
    if VM_HEAD in parts.tensors:
        parts.report.layout = "released VW-LMM"
        pseudo = "on" if configs.is_pseudo_image(source.config) else "off"
        told = "" if wishes.pseudo_image_features is None else ", overruled by --pseudo-image-features"
        classes = ", ".join(map(str, source.config.get("architectures") or []))
        parts.report.notes.append(f"pseudo-image features: {pseudo}, by the checkpoint's class {classes}{told}")
    return join(parts, source.config, source.config, source.folder, wishes)


def _projector(source: Source, wishes: Wishes) -> Parts:
    """LLaVA's stage 1, which saves the projector alone: the LLM and the tower come from their own folders."""
    name = wishes.language_model or source.config.get("_name_or_path")
    if not name:
        raise ValueError(
            f"{source.folder} holds a projector alone, and no config.json that names its LLM: give --language-model FOLDER."
        )
    parts = Parts(Report("LLaVA's stage 1, the projector alone"), folder=local_folder(name, "The language model"))
    parts.add(source.weights, layouts.PROJECTOR)
    parts.add(open_weights(parts.folder), layouts.BARE_LANGUAGE_MODEL)
    deep = "multi_modal_projector.linear_2.weight" in parts.tensors
    released = {"mm_projector_type": "mlp2x_gelu" if deep else "linear", **source.config}
    return join(parts, released, read_json(parts.folder / "config.json"), source.folder, wishes)


def join(parts: Parts, released: dict[str, Any], llm: dict[str, Any], folder: Path, wishes: Wishes) -> Parts:
    """Tower, configuration and processor of a checkpoint whose config.json is the LLM's with `mm_*` fields.

    Args:
        parts: with the tensors found so far, and the tokenizer's folder.
        released: the `mm_*` fields and the class.
        llm: the LLM's fields.
        folder: of the checkpoint, beside which a tower may lie.
        wishes: what the caller says otherwise.
    """
    has_tower = any(name.startswith("vision_tower.") for name in parts.tensors)
    tower = find_tower(
        wishes.vision_tower or released.get("mm_vision_tower"),
        source=folder,
        image_aspect_ratio=_aspect_ratio(released),
        has_weights=has_tower,
    )
    if not has_tower:
        assert tower.folder  # find_tower gives one when the weights are not in the checkpoint
        parts.add(open_weights(tower.folder), layouts.TOWER)
        parts.report.notes.append(
            "the vision tower is not in the checkpoint: it comes from the folder or model it names"
        )
    text, parts.report.config_ignored = configs.text_config(llm, folder)
    tokenizer = load_tokenizer(parts.folder)
    pseudo = wishes.pseudo_image_features
    parts.config = configs.whole_config(
        released,
        text,
        tower.config,
        image_token=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        pseudo_image_features=configs.is_pseudo_image(released) if pseudo is None else pseudo,
    )
    _check_words(tokenizer, parts.config)
    parts.processor = _processor(tokenizer, tower, parts.config)
    _set_template(parts.processor, wishes.chat_template or configs.CHAT_TEMPLATES[text.model_type], parts)
    if released.get("mm_use_im_start_end"):
        _surround_images(parts)
    return parts


def _aspect_ratio(released: dict[str, Any]) -> str | None:
    ratio = released.get("image_aspect_ratio")
    if ratio not in (None, "pad", "square"):
        raise ValueError(f"image_aspect_ratio {ratio!r} is not LLaVA-1.5's: expected pad or square.")
    return "pad" if ratio == "pad" else None


def _processor(tokenizer: Any, tower: Tower, config: VisualWordLlavaConfig) -> Any:
    from transformers import LlavaProcessor

    return LlavaProcessor(
        image_processor=tower.image_processor,
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's class token
    )


def _set_template(processor: Any, name: str, parts: Parts) -> None:
    template = chat_template_for(name, processor.tokenizer)
    processor.tokenizer.chat_template = processor.chat_template = template
    parts.report.notes.append(f"chat template: {name if name in CHAT_TEMPLATES else 'as given'}")


def _surround_images(parts: Parts) -> None:
    """`mm_use_im_start_end`: the prompt names where a picture begins and ends."""
    words = parts.processor.tokenizer.get_vocab()
    if not {"<im_start>", "<im_end>"} <= set(words):
        raise ValueError(
            "config.json says mm_use_im_start_end, but the tokenizer does not know <im_start> and <im_end>: take the tokenizer "
            "that was saved with the checkpoint."
        )
    template = parts.processor.chat_template.replace("<image>", "<im_start><image><im_end>")
    parts.processor.tokenizer.chat_template = parts.processor.chat_template = template
    parts.report.notes.append("mm_use_im_start_end: the chat template puts <im_start> and <im_end> round a picture")


def _check_words(tokenizer: Any, config: VisualWordLlavaConfig) -> None:
    """Every word but `<image>`, whose embedding is the picture's, needs a row in the tables."""
    rows = config.text_config.vocab_size
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    beyond = sorted(word for word, number in tokenizer.get_vocab().items() if number >= rows and number != image)
    if beyond:
        raise ValueError(
            f"config.json says vocab_size {rows}, but the tokenizer knows {len(beyond)} more words ({', '.join(beyond[:4])}): "
            "the tokenizer and the weights do not belong together."
        )
