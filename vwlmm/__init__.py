"""vwlmm: large multimodal models that see in words. See README.md, and `vwlmm --help` for the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vwlmm.assembly import assemble
    from vwlmm.loading import load_model
    from vwlmm.models import (
        DualEncoderConfig,
        DualEncoderModel,
        VisualWordLlavaConfig,
        VisualWordLlavaForConditionalGeneration,
    )

# transformers takes seconds to import; `vwlmm --help` and `vwlmm.functional` do without it.
_LAZY = {
    "DualEncoderConfig": "vwlmm.models",
    "DualEncoderModel": "vwlmm.models",
    "VisualWordLlavaConfig": "vwlmm.models",
    "VisualWordLlavaForConditionalGeneration": "vwlmm.models",
    "assemble": "vwlmm.assembly",
    "load_model": "vwlmm.loading",
}

__all__ = [
    "DualEncoderConfig",
    "DualEncoderModel",
    "VisualWordLlavaConfig",
    "VisualWordLlavaForConditionalGeneration",
    "__version__",
    "assemble",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'vwlmm' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
