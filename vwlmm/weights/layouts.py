"""The published layouts: where each of their tensors goes in a LLaVA folder, and which are of no use there.

Sources: the released VW-LMM and LLaVA-1.5 classes (`model.mm_projector.*`, `model.vision_tower.vision_tower.*`,
`vm_head.weight`), llava-hf folders, bare LLMs and CLIP towers.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

RECOMPUTED = "a buffer that the model computes itself"

# Pattern → name in our folders, or None with the reason why it is left out.
Rules = list[tuple[str, str | None, str]]

IGNORED: Rules = [
    (r".*rotary_emb\.inv_freq", None, RECOMPUTED),
    (r".*embeddings\.position_ids", None, RECOMPUTED),
]
PROJECTOR: Rules = [
    (r"(?:base_model\.model\.)?(?:model\.)?mm_projector\.(weight|bias)", r"multi_modal_projector.linear_1.\1", ""),
    (r"(?:base_model\.model\.)?(?:model\.)?mm_projector\.0\.(weight|bias)", r"multi_modal_projector.linear_1.\1", ""),
    (r"(?:base_model\.model\.)?(?:model\.)?mm_projector\.2\.(weight|bias)", r"multi_modal_projector.linear_2.\1", ""),
]
LANGUAGE_MODEL: Rules = [
    (r"lm_head\.weight", "language_model.lm_head.weight", ""),
    (r"model\.((?:embed_tokens|layers|norm)\..*)", r"language_model.model.\1", ""),
]
# Released VW-LMM and original LLaVA-1.5: the LLM's own names, with the other parts inside.
FLAT: Rules = [
    *IGNORED,
    *PROJECTOR,
    (r"model\.vision_tower\.vision_tower\.(.*)", r"vision_tower.\1", ""),
    (r"vm_head\.weight", "vm_head.weight", ""),
    *LANGUAGE_MODEL,
]
# llava-hf and our own folders, with the names on disk, in memory, or as ZeRO-3 saves them.
NESTED: Rules = [
    *IGNORED,
    (r"(?:model\.)?multi_modal_projector\.(.*)", r"multi_modal_projector.\1", ""),
    (r"(?:model\.)?vision_tower\.(.*)", r"vision_tower.\1", ""),
    (r"(?:language_model\.)?lm_head\.weight", "language_model.lm_head.weight", ""),
    (r"language_model\.(?:model\.)+(.*)", r"language_model.model.\1", ""),
    (r"model\.language_model\.(.*)", r"language_model.model.\1", ""),
    (r"vm_head\.weight", "vm_head.weight", ""),
]
TOWER: Rules = [
    *IGNORED,
    (r"(?:text_model\..*|logit_scale|(?:text|visual)_projection\.weight)", None, "CLIP's text half; LLaVA sees only"),
    (r"(vision_model\..*)", r"vision_tower.\1", ""),
    (r"((?:embeddings|encoder|pre_layrnorm|post_layernorm)\..*)", r"vision_tower.vision_model.\1", ""),
]
BARE_LANGUAGE_MODEL: Rules = [*IGNORED, *LANGUAGE_MODEL]


@dataclass
class Mapped:
    """The tensors of one source, by what becomes of them."""

    names: dict[str, str] = field(default_factory=dict)  # ours → the source's
    ignored: dict[str, str] = field(default_factory=dict)  # the source's → why
    unknown: list[str] = field(default_factory=list)


def map_names(names: Iterable[str], rules: Rules) -> Mapped:
    """Sorts names by the first rule that fits the whole of each.

    Raises:
        ValueError: two tensors would become the same one.
    """
    mapped = Mapped()
    for name in names:
        for pattern, ours, reason in rules:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            if ours is None:
                mapped.ignored[name] = reason
            else:
                target = match.expand(ours)
                if target in mapped.names:
                    raise ValueError(f"{name} and {mapped.names[target]} are both {target}: expected one of the two.")
                mapped.names[target] = name
            break
        else:
            mapped.unknown.append(name)
    return mapped


def comparable(name: str) -> str:
    """A tensor's name on disk or in memory, so that the two can be compared; CLIP's `vision_model.` comes and goes."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    name = re.sub(r"^model\.(vision_tower|multi_modal_projector)\.", r"\1.", name)
    return name.replace("vision_tower.vision_model.", "vision_tower.")
