"""How often each word of a tokenizer stands in the training captions, which of its ids are words, and the file of both.

`vwlmm data word-prior` writes the file; the VLAP objective reads it. Paper: VLAP, arXiv 2404.09632.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class WordPrior:
    """Counts of a data set's words.

    Attributes:
        counts: `[tokenizer's ids]`, in how many captions each id stands; a word that a caption repeats counts once.
        num_captions: how many captions were counted.
        tokenizer: fingerprint of the tokenizer they were counted with.
    """

    counts: Tensor
    num_captions: int
    tokenizer: str

    def masses(self, vocab: int, *, smoothing: float, power: float) -> Tensor:
        """(count + smoothing)^power of every id, padded to the model's `vocab` ids with 0; not normalised."""
        masses = torch.zeros(vocab)
        masses[: len(self.counts)] = (self.counts + smoothing) ** power
        return masses


def fingerprint(tokenizer: Any) -> str:
    """The same for the same words at the same ids, whatever was added for pictures."""
    added = set(tokenizer.all_special_tokens)
    words = sorted((token_id, word) for word, token_id in tokenizer.get_vocab().items() if word not in added)
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def word_mask(tokenizer: Any, vocab: int) -> Tensor:
    """True for the ids that are words, `[vocab]` bool.

    No words are special tokens, ids that the tokenizer does not use (padding of the table), pieces of a character, and
    tokens of nothing but white space. Punctuation and parts of words count as words.
    """
    special = set(tokenizer.all_special_ids)
    ids = [token_id for token_id in range(min(vocab, len(tokenizer))) if token_id not in special]
    pieces = tokenizer.batch_decode([[token_id] for token_id in ids], clean_up_tokenization_spaces=False)
    mask = torch.zeros(vocab, dtype=torch.bool)
    words = [token_id for token_id, piece in zip(ids, pieces, strict=True) if piece.strip() and "\ufffd" not in piece]
    mask[torch.tensor(words, dtype=torch.long)] = True
    return mask


def count_words(captions: Iterable[Iterable[int]], tokenizer: Any) -> WordPrior:
    """Counts captions given as token ids; special tokens, which close every caption, are left out.

    Raises:
        ValueError: there are no captions.
    """
    counted: Counter[int] = Counter()
    num_captions = 0
    for caption in captions:
        counted.update(set(caption))
        num_captions += 1
    if not num_captions:
        raise ValueError("Word counts need at least one caption: got none.")
    counts = torch.zeros(len(tokenizer))
    for token_id in set(counted) - set(tokenizer.all_special_ids):
        counts[token_id] = counted[token_id]
    return WordPrior(counts, num_captions, fingerprint(tokenizer))


def write_word_prior(prior: WordPrior, path: Path) -> None:
    """Writes JSON: the counts above 0 by id, the captions, and the tokenizer's fingerprint."""
    counts = {str(token_id): int(count) for token_id, count in enumerate(prior.counts.tolist()) if count}
    content = {
        "num_captions": prior.num_captions,
        "tokenizer": prior.tokenizer,
        "num_ids": len(prior.counts),
        "counts": counts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")


def read_word_prior(path: Path, tokenizer: Any) -> WordPrior:
    """Reads what `write_word_prior` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or counts made with another tokenizer.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"objective.prior: word counts were expected at {path}: there is no such file. "
            "Write it: vwlmm data word-prior RECIPE."
        )
    try:
        content = json.loads(path.read_text())
        counts = torch.zeros(content["num_ids"])
        for token_id, count in content["counts"].items():
            counts[int(token_id)] = count
        prior = WordPrior(counts, content["num_captions"], content["tokenizer"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
        raise ValueError(
            f"objective.prior {path} is not a file of `vwlmm data word-prior` ({type(problem).__name__}: {problem})."
        ) from None
    if prior.tokenizer != fingerprint(tokenizer):
        raise ValueError(
            f"objective.prior {path} was counted with another tokenizer ({len(counts)} ids, fingerprint "
            f"{prior.tokenizer}; this model's has {len(tokenizer)}, {fingerprint(tokenizer)}), so its counts belong to other "
            "words. Count again: vwlmm data word-prior RECIPE."
        )
    return prior
