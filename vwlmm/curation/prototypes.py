"""Concept prototypes: the mean embedding of a few labelled pictures of each concept. Paper: arXiv 2409.19425, A.1."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor


@dataclass
class Prototypes:
    """One direction a concept, in the space in which captions are scored."""

    names: list[str]
    vectors: Tensor  # [concepts, dim], fp32, of norm 1
    shots: list[int] = field(default_factory=list)  # pictures behind each
    origin: str = ""  # tells what they were made from, so that they are not made twice

    def __post_init__(self) -> None:
        if len(self.names) != len(self.vectors):
            raise ValueError(f"One name a prototype: got {len(self.names)} names, {len(self.vectors)} prototypes.")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"Each concept has one prototype, got one name twice among {len(self.names)}.")
        if not torch.isfinite(self.vectors).all():
            raise ValueError("A prototype is not finite: look whether the encoder overflowed (try fp32).")

    @property
    def digest(self) -> str:
        """Changes with any name or number."""
        content = json.dumps(self.names).encode() + self.vectors.contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()

    def save(self, path: Path) -> None:
        """Writes a safetensors file; names and shots go into its metadata."""
        from safetensors.torch import save_file

        metadata = {
            "names": json.dumps(self.names, ensure_ascii=False),
            "shots": json.dumps(self.shots),
            "origin": self.origin,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        save_file({"prototypes": self.vectors.contiguous()}, unfinished, metadata=metadata)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Prototypes":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is cut short, or without concept names.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise FileNotFoundError(f"Prototypes were expected at {path}: there is no such file.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, vectors = file.metadata() or {}, file.get_tensor("prototypes")
        except SafetensorError as problem:
            raise ValueError(f"{path}: expected the prototypes a curation saved, found: {problem}.") from problem
        if "names" not in metadata:
            raise ValueError(f"{path}: expected concept names in the metadata, found {list(metadata) or 'none'}.")
        return cls(
            json.loads(metadata["names"]),
            vectors.float(),
            json.loads(metadata.get("shots", "[]")),
            metadata.get("origin", ""),
        )


def few_shot(labels: Sequence[str], shots: int, seed: int = 0) -> dict[str, list[int]]:
    """Which pictures stand for each concept: at most `shots`, drawn with the seed; concepts in the order they appear.

    Raises:
        ValueError: no label, or fewer than one shot.
    """
    if shots < 1:
        raise ValueError(f"A prototype needs at least 1 picture, got shots {shots}.")
    if not labels:
        raise ValueError("Prototypes are made from labelled pictures, got none.")
    members: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for label, indices in members.items():
        order = torch.randperm(len(indices), generator=generator)[:shots]
        chosen[label] = sorted(indices[i] for i in order.tolist())
    return chosen


def concept_prototypes(features: Tensor, groups: dict[str, list[int]]) -> Prototypes:
    """The normalised mean of each concept's normalised features.

    Args:
        features: embeddings of the labelled pictures, `[pictures, dim]`.
        groups: concept → rows of `features` that stand for it, from `few_shot`.

    Raises:
        ValueError: an embedding that is not finite, or embeddings of a concept that cancel out.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    means = torch.stack([unit[rows].mean(0) for rows in groups.values()])  # [concepts, dim]
    norms = means.norm(dim=-1)
    for name, norm in zip(groups, norms.tolist(), strict=True):
        if not norm > 1e-6:
            raise ValueError(f"The pictures of concept '{name}' have no common direction (mean of norm {norm:.3g}).")
    return Prototypes(list(groups), (means / norms[:, None]).float(), [len(rows) for rows in groups.values()])
