"""The methods, by the name a recipe gives them: to add one, write its file and one line here."""

from vwlmm.objectives.visual_words import VisualWords, VisualWordsConfig
from vwlmm.objectives.vlap import VLAP, VLAPConfig

OBJECTIVES = {
    "visual_words": (VisualWords, VisualWordsConfig),
    "vlap": (VLAP, VLAPConfig),
}

__all__ = ["OBJECTIVES", "VLAP", "VLAPConfig", "VisualWords", "VisualWordsConfig"]
