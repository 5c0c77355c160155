"""Models own every parameter, and every read of one happens inside its owner's forward."""

from vwlmm.models.configuration import VisualWordLlavaConfig
from vwlmm.models.dual_encoder import DualEncoderModel
from vwlmm.models.dual_encoder_configuration import DualEncoderConfig
from vwlmm.models.visual_word_llava import VisualWordLlavaForConditionalGeneration, VisualWordLlavaModel

__all__ = [
    "DualEncoderConfig",
    "DualEncoderModel",
    "VisualWordLlavaConfig",
    "VisualWordLlavaForConditionalGeneration",
    "VisualWordLlavaModel",
]
