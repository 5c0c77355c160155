"""CIDEr-D, BLEU-1…4 and ROUGE-L as the COCO caption server computes them, from captions that are already split into tokens.

Sources: Vedantam et al. 2015 (arXiv 1411.5726), Papineni et al. 2002, Lin 2004; quirks that move a figure are the published
evaluator's (pycocoevalcap 1.2), because papers quote its numbers, and are named where they stand.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

# One caption, as tokens joined by single blanks.
Caption = str
NGram = tuple[str, ...]

MAX_N = 4
CIDER_SIGMA = 6.0  # in words: how fast the score falls with a difference in length
ROUGE_BETA = 1.2  # weight of recall against precision
_SMALL, _TINY = 1e-9, 1e-15  # BLEU's guards against dividing by zero; both show in the ninth digit


def cider_d(candidates: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> list[float]:
    """CIDEr-D of every candidate, from 0 to 10; the figure of a set is their mean.

    The weight of an n-gram comes from the number of these images whose references hold it: the same caption scores
    otherwise in another set, and a set of one image scores 0.

    Args:
        candidates: one caption an image.
        references: the human captions of the same images, in the same order.
    """
    _check(candidates, references)
    counted = [[ngram_counts(reference) for reference in image] for image in references]
    frequency = Counter(ngram for image in counted for ngram in set().union(*image))
    log_images = math.log(len(references))

    def vector(counts: Counter[NGram]) -> tuple[list[dict[NGram, float]], list[float], int]:
        """tf-idf by n-gram length, its norms, and the caption's length."""
        weights: list[dict[NGram, float]] = [{} for _ in range(MAX_N)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, frequency[ngram])))
        norms = [math.sqrt(sum(value**2 for value in weight.values())) for weight in weights]
        # The evaluator measures length in bigrams, one less than words.
        return weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

    scores = []
    for candidate, image in zip(candidates, counted, strict=True):
        found = vector(ngram_counts(candidate))
        similarities = [_clipped_cosine(found, vector(counts)) for counts in image]
        scores.append(10.0 * sum(similarities) / len(similarities))
    return scores


def _clipped_cosine(found: tuple, wanted: tuple) -> float:
    """Mean over n-gram lengths of the cosine with counts clipped at the reference's, less for another length."""
    (weights, norms, length), (wanted_weights, wanted_norms, wanted_length) = found, wanted
    total = 0.0
    for n in range(MAX_N):
        norm = norms[n] * wanted_norms[n]
        if norm > 0:
            pairs = ((value, wanted_weights[n].get(ngram, 0.0)) for ngram, value in weights[n].items())
            total += sum(min(value, other) * other for value, other in pairs) / norm
    return total / MAX_N * math.exp(-((length - wanted_length) ** 2) / (2 * CIDER_SIGMA**2))


def bleu(candidates: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the whole set: clipped n-gram precision over all captions, with the brevity penalty.

    The reference length of a caption is the one closest to its own, the shorter of two as close.
    """
    _check(candidates, references)
    guessed, correct = np.zeros(MAX_N), np.zeros(MAX_N)
    length = wanted_length = 0
    for candidate, image in zip(candidates, references, strict=True):
        words = len(candidate.split())
        length += words
        wanted_length += min((abs(len(r.split()) - words), len(r.split())) for r in image)[1]
        most: Counter[NGram] = Counter()
        for reference in image:
            most |= ngram_counts(reference)
        guessed += [max(0, words - n) for n in range(MAX_N)]
        for ngram, count in (ngram_counts(candidate) & most).items():
            correct[len(ngram) - 1] += count
    precisions = (correct + _TINY) / (guessed + _SMALL)
    ratio = (length + _TINY) / (wanted_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [float(np.prod(precisions[: n + 1]) ** (1 / (n + 1)) * penalty) for n in range(MAX_N)]


def rouge_l(candidates: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> list[float]:
    """ROUGE-L of every candidate, from 0 to 1: best precision and best recall over the references, which may be two."""
    _check(candidates, references)
    scores = []
    for candidate, image in zip(candidates, references, strict=True):
        words = candidate.split(" ")  # as published: an empty caption counts as one word, the empty one
        common = [(longest_common_subsequence(words, r.split(" ")), len(r.split(" "))) for r in image]
        precision = max(length for length, _ in common) / len(words)
        recall = max(length / wanted for length, wanted in common)
        bottom = recall + ROUGE_BETA**2 * precision
        scores.append((1 + ROUGE_BETA**2) * precision * recall / bottom if precision and recall else 0.0)
    return scores


def ngram_counts(caption: Caption) -> Counter[NGram]:
    """How often each run of one to four words stands in the caption."""
    words = caption.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest run of words that both hold in the same order, gaps allowed."""
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for i, other in enumerate(right, start=1):
            above = lengths[i]
            lengths[i] = diagonal + 1 if word == other else max(above, lengths[i - 1])
            diagonal = above
    return lengths[-1]


def _check(candidates: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> None:
    if not candidates:
        raise ValueError("caption metrics need at least one caption, got none")
    if len(candidates) != len(references):
        raise ValueError(f"expected one caption an image, got {len(candidates)} for {len(references)} images")
    empty = [i for i, image in enumerate(references) if not image]
    if empty:
        raise ValueError(f"image number {empty[0]} has no reference caption to compare with")
