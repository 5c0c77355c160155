"""Models own every parameter, and every read of one happens inside its owner's forward."""

from vwlmm.models.configuration import VisualWordLlavaConfig
from vwlmm.models.visual_word_llava import VisualWordLlavaForConditionalGeneration, VisualWordLlavaModel

__all__ = ["VisualWordLlavaConfig", "VisualWordLlavaForConditionalGeneration", "VisualWordLlavaModel"]
