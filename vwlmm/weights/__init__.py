"""Weights in and out of a folder, tensor by tensor: published layouts in, plain LLaVA and GGUF out, nothing unpickled blindly."""

from vwlmm.weights.check import check_folder
from vwlmm.weights.folder import finished_folder
from vwlmm.weights.reading import WeightFiles, open_weights

__all__ = ["WeightFiles", "check_folder", "finished_folder", "open_weights"]
