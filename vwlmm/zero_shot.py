"""Zero-shot classification: prompts from the user's files, class vectors as CLIP or freeze-align make them, scores.

scores = classify(image_features, class_vectors(embed_texts, names, read_prompts("single", names)), labels, names)

Papers: CLIP (arXiv 2103.00020), freeze-align (2409.19425, section 8 of its code), descriptive prompts (2307.11661).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

SINGLE = "photo of {}"  # what freeze-align's script falls back to
SCRIPT_LENGTH = 19  # prompts a class to which its script pads ImageNet's lists
PLACES = ("{}", "{c}", "{class}", "{classname}")  # how template files write the place of the name

Prompts = dict[str, list[str]]  # class → sentences


def read_prompts(source: str | Path, names: Sequence[str], *, set_name: str | None = None) -> Prompts:
    """The sentences of each class.

    Args:
        source: `single` for "photo of {}"; or a file: .txt with one template a line; .json with a list of templates, with
            lists of templates by data set (as CLIP_benchmark's), or with lists of descriptions by class.
        names: of the classes, in the order of the labels.
        set_name: which data set of a file that holds several; needed there only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a template without a place for the name, descriptions that do not match the classes, or a set that
            the file does not have.
    """
    check_names(names)
    if str(source) == "single":
        return fill([SINGLE], names)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"Prompts are 'single' or a file of templates or descriptions, found none at {path}.")
    if path.suffix != ".json":
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return fill([line for line in lines if line], names, str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{path}: expected JSON with templates or descriptions, found: {problem}.") from problem
    if isinstance(content, list):
        return fill(_sentences(content, path, "the list"), names, str(path))
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a list of templates, or lists by data set or by class.")
    if any(_is_template(text) for texts in content.values() if isinstance(texts, list) for text in texts):
        return fill(_of_set(content, set_name, path), names, str(path))
    return _descriptions(content, names, path)


def fill(templates: Sequence[str], names: Sequence[str], source: str = "the templates") -> Prompts:
    """Each template with each name in its place.

    Raises:
        ValueError: no template, or one without a place.
    """
    if not templates:
        raise ValueError(f"{source}: expected at least one template, found none.")
    wrong = next((template for template in templates if not _is_template(template)), None)
    if wrong is not None:
        raise ValueError(f"{source}: expected {' or '.join(PLACES)} in every template, found none in {wrong!r}.")
    return {name: [_fill(template, name) for template in templates] for name in names}


def _is_template(text: Any) -> bool:
    return isinstance(text, str) and any(place in text for place in PLACES)


def _fill(template: str, name: str) -> str:
    for place in PLACES:
        template = template.replace(place, name)
    return template


def _of_set(content: Mapping[str, Any], set_name: str | None, path: Path) -> list[str]:
    if set_name is None and len(content) > 1:
        raise ValueError(
            f"{path} holds templates of {len(content)} data sets ({', '.join(content)}): name one of them."
        )
    name = set_name or next(iter(content))
    if name not in content:
        raise ValueError(f"{path}: expected templates of '{name}', found those of {', '.join(content)}.")
    return _sentences(content[name], path, name)


def _descriptions(content: Mapping[str, Any], names: Sequence[str], path: Path) -> Prompts:
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(
            f"{path}: expected descriptions of each of the {len(names)} classes, found none of {len(missing)}: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}. It has {', '.join(list(content)[:5])}, …"
        )
    return {name: _sentences(content[name], path, name) for name in names}


def _sentences(texts: Any, path: Path, what: str) -> list[str]:
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{path}: expected a list of sentences for '{what}', found {texts!r:.80}.")
    return texts


def class_vectors(
    embed_texts: Callable[[list[str]], Tensor],
    prompts: Prompts,
    *,
    renormalise: bool = True,
    pad_to: int | None = None,
) -> Tensor:
    """One vector a class: the mean of its prompts' embeddings, each of length 1, `[classes, dim]`.

    Args:
        embed_texts: texts → `[texts, dim]`.
        prompts: sentences of each class, in the order of the labels.
        renormalise: bring the mean to length 1, as CLIP does. freeze-align's script leaves it, so classes whose
            sentences agree are favoured.
        pad_to: repeat each class's first sentence up to so many, as that script does (19 for ImageNet).

    Raises:
        ValueError: no class, or more sentences than `pad_to`.
    """
    if not prompts:
        raise ValueError("Class vectors need at least one class, got none.")
    padded = {name: _pad(name, texts, pad_to) for name, texts in prompts.items()}
    flat = normalize(embed_texts([text for texts in padded.values() for text in texts]).float(), dim=-1)
    means = torch.stack([part.mean(0) for part in flat.split([len(texts) for texts in padded.values()])])
    return normalize(means, dim=-1) if renormalise else means


def _pad(name: str, texts: list[str], length: int | None) -> list[str]:
    if length is None:
        return texts
    if len(texts) > length:
        raise ValueError(f"Class '{name}' has {len(texts)} sentences, more than the {length} to pad to.")
    return texts + texts[:1] * (length - len(texts))


@dataclass(frozen=True)
class ZeroShotScores:
    """How often the right class was nearest."""

    top1: float
    top5: float  # among the five nearest; of fewer classes, among all
    mean_per_class: float  # top-1, each class counting once however many pictures it has
    num_images: int
    num_classes: int

    @property
    def chance(self) -> float:
        """Top-1 of a guess."""
        return 1 / self.num_classes


def classify(
    images: Tensor, classes: Tensor, labels: Sequence[int], names: Sequence[str], *, k_test: int | None = None
) -> ZeroShotScores:
    """Compares each picture with every class vector.

    Args:
        images: `[images, dim]`; their lengths do not matter.
        classes: `[classes, dim]` from `class_vectors`.
        labels: number of each picture's class.
        names: of the classes, in that order.
        k_test: leave out all but so many best classes, as freeze-align's script does (128); changes no top-1 or top-5.

    A class that is exactly as near as the right one counts as nearer, so a collapsed encoder scores 0.

    Raises:
        ValueError: the class list does not match labels or vectors, or `k_test` exceeds the classes.
    """
    check_labels(labels, names, len(images))
    if len(classes) != len(names):
        raise ValueError(f"{len(names)} class names, but {len(classes)} class vectors: make them from the same list.")
    if k_test is not None and not 5 <= k_test <= len(names):
        raise ValueError(f"k_test keeps at least 5 and at most all {len(names)} classes, got {k_test}.")
    target = torch.as_tensor(labels, dtype=torch.long)
    scores = normalize(images.float(), dim=-1) @ classes.float().T  # [images, classes]
    if not torch.isfinite(scores).all():
        raise ValueError("Some embeddings are not finite: look whether the encoder overflowed (try fp32).")
    own = scores.gather(1, target[:, None])
    rank = (scores >= own).sum(1) - 1  # classes before the right one
    if k_test is not None:
        rank = torch.where(rank < k_test, rank, len(names))
    right = (rank == 0).double()
    per_class = [right[target == label].mean() for label in target.unique().tolist()]
    return ZeroShotScores(
        top1=float(right.mean()),
        top5=float((rank < 5).double().mean()),
        mean_per_class=float(torch.stack(per_class).mean()),
        num_images=len(images),
        num_classes=len(names),
    )


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for an empty list, a name that is not text, or one that is there twice."""
    if not names:
        raise ValueError("The class list is empty: expected one name a class, in the order of the labels.")
    wrong = next((name for name in names if not isinstance(name, str) or not name.strip()), None)
    if wrong is not None:
        raise ValueError(f"The class list holds {wrong!r}: expected names in words.")
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"The class list names '{twice}' twice: two labels could not be told apart.")


def check_labels(labels: Sequence[int], names: Sequence[str], num_images: int) -> None:
    """Raises ValueError where labels do not match the class list or the pictures."""
    check_names(names)
    if len(labels) != num_images:
        raise ValueError(f"One label a picture: got {len(labels)} labels for {num_images} pictures.")
    outside = sorted({int(label) for label in labels if not 0 <= int(label) < len(names)})
    if outside:
        raise ValueError(
            f"The class list has {len(names)} names (labels 0 to {len(names) - 1}), but labels name "
            f"{', '.join(map(str, outside[:5]))}: give the list the labels were made with."
        )


def labels_by_name(labels: Sequence[str], names: Sequence[str]) -> list[int]:
    """Numbers of labels given as names.

    Raises:
        ValueError: a label that the list does not have.
    """
    check_names(names)
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted({label for label in labels if label not in numbers})
    if unknown:
        raise ValueError(
            f"{len(unknown)} labels are not in the class list of {len(names)}: {', '.join(map(repr, unknown[:5]))}."
        )
    return [numbers[label] for label in labels]
