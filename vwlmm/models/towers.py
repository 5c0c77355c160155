"""The frozen towers of a dual encoder: any vision model and any text model, read as tokens of one shape.

Used by `DualEncoderModel` and, for one encoder alone, by `vwlmm.encoders`. Paper: freeze-align (arXiv 2409.19425).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

import vwlmm.models.efficientnet_lite  # noqa: F401 — AutoModel knows it from here on

KINDS = ("vision", "text")


def load_tower(
    source: str | Path,
    kind: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
) -> PreTrainedModel:
    """A pretrained tower in eval mode; of a CLIP-like pair only the half that is asked for.

    Args:
        source: hub id or folder that `AutoModel` reads, sentence-transformers folders included.
        kind: `vision` or `text`.
        revision: branch, tag or commit of a hub repository.
        dtype: of the weights; `auto` keeps the folder's own.

    Raises:
        OSError: no such folder or repository.
    """
    place = transformer_place(source, revision)
    config = tower_config(source, kind, revision=revision)
    tower: Any = tower_class(config, kind).from_pretrained(str(source), config=config, dtype=dtype, **place)
    return tower.eval()


def find_tower(config: PreTrainedConfig, kind: str, source: Any) -> PreTrainedModel:
    """The tower that the configuration of a pair names, checked to be the one the pair was made with.

    Args:
        config: with `vision_tower`, `vision_revision`, `vision_fingerprint`, and the same of the text.
        kind: `vision` or `text`.
        source: where the pair lies, for messages.

    Raises:
        OSError: the tower is not where the configuration says.
        ValueError: it has other weights now, or the configuration names none.
    """
    name = getattr(config, f"{kind}_tower")
    if name is None:
        raise ValueError(f"{source} neither holds its {kind} tower nor says where it is.")
    try:
        tower = load_tower(name, kind, revision=getattr(config, f"{kind}_revision"))
    except OSError as problem:
        raise OSError(
            f"{source} was trained on the {kind} tower {name}, which cannot be read ({problem}): put it back, or say where "
            f"it is now: from_pretrained(…, {kind}_tower=…)."
        ) from None
    expected, found = getattr(config, f"{kind}_fingerprint"), fingerprint(tower)
    if None not in (expected, found) and expected != found:
        raise ValueError(
            f"{source} was trained on the {kind} tower {name} with other weights than it has now (fingerprint {expected}, "
            f"now {found}): its projectors would read features they have never seen. Name the old one: "
            f"from_pretrained(…, {kind}_tower=…, or {kind}_revision in config.json)."
        )
    return tower


def transformer_place(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """`revision` and `subfolder` for `from_pretrained`: old sentence-transformers folders keep it in `0_Transformer`."""
    for module in sentence_modules(source, revision):
        if module.get("type", "").endswith("Transformer"):
            return {"revision": revision, "subfolder": module.get("path", "")}
    return {"revision": revision, "subfolder": ""}


def sentence_modules(source: str | Path, revision: str | None = None) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder or repository, in order; none for any other."""
    file = read_file(source, "modules.json", revision)
    return [] if file is None else json.loads(file.read_text())


def read_file(source: str | Path, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or hub repository, or None if it has no such file."""
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    found = cached_file(str(source), name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def tower_config(source: str | Path, kind: str, *, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a tower, or of that half of a CLIP-like pair."""
    if kind not in KINDS:
        raise ValueError(f"A tower is one of {', '.join(KINDS)}: got {kind!r}.")
    config = AutoConfig.from_pretrained(str(source), **transformer_place(source, revision))
    half = getattr(config, f"{kind}_config", None)
    return half if isinstance(half, PreTrainedConfig) else config


def tower_class(config: PreTrainedConfig, kind: str) -> type[PreTrainedModel]:
    """The class that reads a tower: of T5 and its like the encoder alone, of everything else what `AutoModel` gives."""
    auto: Any = AutoModelForTextEncoding if kind == "text" and _is_text_encoder(config) else AutoModel
    with torch.device("meta"):
        return type(auto.from_config(config))


def _is_text_encoder(config: PreTrainedConfig) -> bool:
    return type(config) in AutoModelForTextEncoding._model_mapping


def tower_width(config: PreTrainedConfig) -> int:
    """How wide a tower's tokens are."""
    widths: Any = getattr(config, "hidden_sizes", None)  # ConvNeXt and its like name one width a stage
    width = getattr(config, "hidden_size", None) or getattr(config, "dim", None) or getattr(config, "d_model", None)
    if width is None and not widths:
        raise ValueError(f"The configuration of this tower ({config.model_type}) does not say how wide its tokens are.")
    return int(width or widths[-1])


def vision_tokens(tower: PreTrainedModel, pixel_values: Tensor, feature_layer: int = -1) -> Tensor:
    """One global token and the patches of each image, `[images, 1 + patches, width]`.

    Args:
        tower: a vision model.
        pixel_values: `[images, 3, height, width]`.
        feature_layer: −1 is the tower's output; any other number its hidden state of that number.

    The global token is the class token; a tower without one (SigLIP, ConvNeXt, EfficientNet) gives its pooled output
    there, or at an inner layer the mean of its patches. Register and distillation tokens are left out.
    """
    inner = feature_layer != -1
    output = tower(pixel_values=pixel_values, return_dict=True, **({"output_hidden_states": True} if inner else {}))
    states = output.hidden_states[feature_layer] if inner else output.last_hidden_state
    pooled = None if inner else getattr(output, "pooler_output", None)
    if states.ndim == 4:
        states, prefix = states.flatten(2).transpose(1, 2), 0  # [images, patches, width]
    else:
        prefix = states.shape[1] - _num_patches(tower, pixel_values, states.shape[1])
    if prefix:
        return torch.cat([states[:, :1], states[:, prefix:]], dim=1)
    whole = states.mean(1) if pooled is None else pooled.flatten(1)
    return torch.cat([whole.unsqueeze(1), states], dim=1)


def _num_patches(tower: PreTrainedModel, pixel_values: Tensor, tokens: int) -> int:
    """Patches among a tower's tokens; all of them where it merges patches (Swin) or does not name their size."""
    patch = getattr(tower.config, "patch_size", None)
    if not isinstance(patch, int):
        return tokens
    patches = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
    return patches if patches <= tokens else tokens


def text_tokens(tower: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The text tower's output, `[texts, tokens, width]`, special tokens included."""
    return tower(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state


def text_summary(tower: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The one token that stands for a text, `[texts, 1, width]`: the first, or in CLIP-like towers the pooled last."""
    output = tower(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
    if tower.config.model_type.endswith("_text_model"):
        return output.pooler_output.unsqueeze(1)
    first = attention_mask.long().argmax(1)  # not 0 where the padding is on the left
    return output.last_hidden_state[torch.arange(len(first)), first].unsqueeze(1)


def fingerprint(tower: PreTrainedModel, values_a_tensor: int = 64) -> str | None:
    """Sixteen letters that tell one set of weights from another: names, shapes, and some values of every tensor.

    Values are read in bf16, so that a tower in fp32 and the same tower in bf16 are the same. None under ZeRO-3, where no
    rank holds the weights.
    """
    if any(hasattr(parameter, "ds_id") for parameter in tower.parameters()):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // values_a_tensor)][:values_a_tensor]
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(some.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]
