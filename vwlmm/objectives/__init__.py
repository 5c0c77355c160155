"""The methods, by the name a recipe gives them: to add one, write its file and one line here."""

from vwlmm.objectives.visual_words import VisualWords, VisualWordsConfig

OBJECTIVES = {"visual_words": (VisualWords, VisualWordsConfig)}

__all__ = ["OBJECTIVES", "VisualWords", "VisualWordsConfig"]
