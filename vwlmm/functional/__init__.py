"""The mathematics of the three methods: plain functions of tensors that import torch and nothing else.

visual_words, language_model and pseudo_features stream a vocabulary head and assignment the word embeddings (no
`[rows, vocab]` tensor); transport and cka are small. Papers: VW-LMM (arXiv 2403.07720), VLAP (2404.09632), freeze-align
(2409.19425).
"""

from vwlmm.functional.assignment import (
    Assignment,
    AssignmentTerms,
    assign_words,
    assignment_loss,
    logsumexp_over_ranks,
)
from vwlmm.functional.cka import linear_cka, rbf_cka
from vwlmm.functional.contrastive import contrastive_loss
from vwlmm.functional.language_model import language_model_loss
from vwlmm.functional.pseudo_features import pseudo_image_features
from vwlmm.functional.transport import sinkhorn
from vwlmm.functional.visual_words import VisualWordTerms, visual_word_loss, visual_word_terms

__all__ = [
    "Assignment",
    "AssignmentTerms",
    "VisualWordTerms",
    "assign_words",
    "assignment_loss",
    "contrastive_loss",
    "language_model_loss",
    "linear_cka",
    "logsumexp_over_ranks",
    "pseudo_image_features",
    "rbf_cka",
    "sinkhorn",
    "visual_word_loss",
    "visual_word_terms",
]
