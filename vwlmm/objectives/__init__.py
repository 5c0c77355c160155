"""The methods, by the name a recipe gives them: to add one, write its file and one line here."""

from vwlmm.objectives.freeze_align import FreezeAlign, FreezeAlignConfig
from vwlmm.objectives.visual_words import VisualWords, VisualWordsConfig
from vwlmm.objectives.vlap import VLAP, VLAPConfig

OBJECTIVES = {
    "visual_words": (VisualWords, VisualWordsConfig),
    "vlap": (VLAP, VLAPConfig),
    "freeze_align": (FreezeAlign, FreezeAlignConfig),
}

__all__ = ["OBJECTIVES", "VLAP", "FreezeAlign", "FreezeAlignConfig", "VLAPConfig", "VisualWords", "VisualWordsConfig"]
