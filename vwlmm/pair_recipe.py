"""The `model` section of a recipe that joins two towers. Checked before a model is loaded."""

import difflib
from dataclasses import dataclass, field
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class PairModelConfig:
    """Which pair a run starts from: an earlier one (`init_from`), or two towers and new projectors."""

    init_from: str | None = None  # folder or hub id of a dual encoder
    vision_tower: str | None = None  # folder or hub id that AutoModel reads
    text_tower: str | None = None  # folder or hub id of a text encoder, sentence-transformers included
    vision_revision: str | None = None  # of the hub repository: branch, tag or commit
    text_revision: str | None = None
    switches: dict[str, Any] = field(default_factory=dict)  # fields of DualEncoderConfig: embed_dim, text_pooling, …
    dtype: str = "float32"  # of the weights

    def __post_init__(self) -> None:
        towers = [name for name in ("vision_tower", "text_tower") if getattr(self, name)]
        if self.init_from is None and len(towers) < 2:
            raise ValueError(
                f"model: expected init_from, or both vision_tower and text_tower; got {', '.join(towers) or 'neither'}."
            )
        if self.init_from is not None and (towers or self.switches):
            raise ValueError(
                "model: init_from already names a whole pair, so towers and switches would be ignored: remove one of the two."
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype is one of {', '.join(DTYPES)}: got {self.dtype!r}.")
        known = _switches() if self.switches else []
        for name in self.switches:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
                raise ValueError(f"unknown key model.switches.{name}. {hint}")


def _switches() -> list[str]:
    """The fields of DualEncoderConfig that a recipe may choose."""
    import dataclasses

    from transformers import PreTrainedConfig

    from vwlmm.models import DualEncoderConfig

    inherited = {f.name for f in dataclasses.fields(PreTrainedConfig)}
    ours = [f.name for f in dataclasses.fields(DualEncoderConfig) if f.name not in inherited]
    given = ("vision_", "text_")
    fixed = {f"{kind}{name}" for kind in given for name in ("config", "tower", "revision", "fingerprint")}
    return [name for name in ours if name not in fixed | {"stored_towers"}]
