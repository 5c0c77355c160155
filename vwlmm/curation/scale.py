"""Cosines in one byte each, without overflow."""

from dataclasses import dataclass

import numpy as np

STEPS = 127  # codes run from -127 to 127, so that both ends of the range fit; -128 means "no score"
NO_SCORE = {"int8": -128, "float32": -np.inf}


@dataclass(frozen=True)
class Scale:
    """How a score is stored.

    `int8` maps [low, high] to −127 … 127 and clamps each score that lies outside. The published script maps the same
    range to ±128, which int8 cannot hold: its best captions become its worst; and its clamp overwrites every score or
    none. `float32` stores the cosine as it is, in four times the space.
    """

    dtype: str = "int8"
    low: float = -0.3  # of CLIP ViT-L's caption-to-picture cosines, as published
    high: float = 0.4

    def __post_init__(self) -> None:
        if self.dtype not in NO_SCORE:
            raise ValueError(f"Scores are stored as {' or '.join(NO_SCORE)}, got {self.dtype!r}.")
        if not self.low < self.high:
            raise ValueError(f"A score range goes from low to high, got {self.low} to {self.high}.")

    @property
    def no_score(self) -> float:
        """The code of a row without a caption; below every score."""
        return NO_SCORE[self.dtype]

    @property
    def resolution(self) -> float:
        """The largest difference between a cosine inside the range and its stored form."""
        return (self.high - self.low) / STEPS / 4 if self.dtype == "int8" else float(np.finfo(np.float32).eps)

    def encode(self, scores: np.ndarray) -> np.ndarray:
        """Cosines → codes, in the same shape."""
        if self.dtype == "float32":
            return scores.astype(np.float32)
        mapped = (scores - self.low) / (self.high - self.low) * 2 - 1
        return np.rint(np.clip(mapped, -1, 1) * STEPS).astype(np.int8)

    def decode(self, codes: np.ndarray | np.integer | np.floating) -> np.ndarray:
        """Codes → cosines, float64."""
        codes = np.asarray(codes, dtype=np.float64)
        return codes if self.dtype == "float32" else (codes / STEPS + 1) / 2 * (self.high - self.low) + self.low

    def num_clipped(self, scores: np.ndarray) -> tuple[int, int]:
        """How many scores lie below and above the range, and so are told apart no longer."""
        if self.dtype == "float32":
            return 0, 0
        return int((scores < self.low).sum()), int((scores > self.high).sum())
