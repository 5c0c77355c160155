"""What a VLAP model does after training: captions, k-shot answers, retrieval, arithmetic with pictures, words by cosine.

Paper: arXiv 2404.09632. Everything works on any model of this package, trained or not.
"""

from vwlmm.vlap.arithmetic import Arithmetic, read_triples, solve, write_caption
from vwlmm.vlap.captions import answer_questions, write_captions
from vwlmm.vlap.likelihood import caption_likelihoods, likelihood_retrieval
from vwlmm.vlap.word_space import WordSpace, image_features, retrieval_scores

__all__ = [
    "Arithmetic",
    "WordSpace",
    "answer_questions",
    "caption_likelihoods",
    "image_features",
    "likelihood_retrieval",
    "read_triples",
    "retrieval_scores",
    "solve",
    "write_caption",
    "write_captions",
]
