"""How well pictures and texts find each other: recall both ways, and zero-shot classification by the names of classes.

recall(images, texts)["image_to_text_r1"]; zero_shot_top1(images, class_embeddings(embed, names, templates), labels)
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

SINGLE_TEMPLATE = ("a photo of {}",)


def recall(
    images: Tensor,
    texts: Tensor,
    *,
    image_labels: Sequence[object] | None = None,
    text_labels: Sequence[object] | None = None,
    ks: tuple[int, ...] = (1, 5, 10),
    chunk_rows: int = 1024,
) -> dict[str, float]:
    """Share of queries with a right answer among the k nearest, `image_to_text_r1` and so on, and `text_to_image_r1`.

    Args:
        images: `[images, dim]`, of length 1.
        texts: `[texts, dim]`, of length 1.
        image_labels, text_labels: what belongs together: an image and a text with equal labels. Without them image i
            belongs to text i. With several captions an image any of them is right, as on Flickr30k and COCO.
        ks: how many nearest are looked at.
        chunk_rows: queries at once.

    A right answer that is exactly as near as wrong ones counts by the chance of being drawn first.

    Raises:
        ValueError: numbers of rows and labels that differ.
    """
    if image_labels is None and text_labels is None:
        if len(images) != len(texts):
            raise ValueError(
                f"{len(images)} images and {len(texts)} texts are not pairs: say by labels which belong together."
            )
        image_labels = text_labels = range(len(images))
    if (
        image_labels is None
        or text_labels is None
        or len(image_labels) != len(images)
        or len(text_labels) != len(texts)
    ):
        raise ValueError("recall: expected one label for every image and every text.")
    numbers = {label: number for number, label in enumerate(dict.fromkeys([*image_labels, *text_labels]))}
    of_image, of_text = (
        torch.tensor([numbers[x] for x in labels], device=images.device) for labels in (image_labels, text_labels)
    )
    ways = {
        "image_to_text": _recall(images, texts, of_image, of_text, ks, chunk_rows),
        "text_to_image": _recall(texts, images, of_text, of_image, ks, chunk_rows),
    }
    return {f"{way}_r{k}": value for way, values in ways.items() for k, value in zip(ks, values, strict=True)}


def _recall(
    queries: Tensor, answers: Tensor, of_query: Tensor, of_answer: Tensor, ks: tuple[int, ...], chunk_rows: int
) -> list[float]:
    found = [0.0] * len(ks)
    for start in range(0, len(queries), chunk_rows):
        scores = queries[start : start + chunk_rows] @ answers.T  # [queries, answers]
        right = of_query[start : start + chunk_rows, None] == of_answer
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)  # of the right answers
        before = ((scores > best) & ~right).sum(1)
        equal = ((scores == best) & ~right).sum(1)
        for number, k in enumerate(ks):
            # Among `equal` wrong answers and one right, each order is as likely: the right one is early enough by chance.
            found[number] += ((k - before) / (equal + 1)).clamp(0, 1).sum().item()
    return [total / max(len(queries), 1) for total in found]


def class_embeddings(
    embed: Callable[[list[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str] = SINGLE_TEMPLATE,
    *,
    descriptions: dict[str, list[str]] | None = None,
    renormalise: bool = False,
) -> Tensor:
    """One vector a class from its prompts: each of length 1, and their mean, `[classes, dim]`.

    Args:
        embed: texts → `[texts, dim]`.
        names: of the classes, in the order of the labels.
        templates: sentences with `{}` for the name (CLIP's sets, or one).
        descriptions: prompts by class instead (arXiv 2307.11661), whole sentences.
        renormalise: bring the mean to length 1, as CLIP does; freeze-align's script does not.

    Raises:
        ValueError: a template without `{}`, or classes and descriptions that differ.
    """
    bad = [template for template in templates if "{}" not in template]
    if bad:
        raise ValueError(f"A template has {{}} where the class' name goes: {bad[0]!r} has none.")
    if descriptions is not None:
        missing = [name for name in names if not descriptions.get(name)]
        if missing:
            raise ValueError(
                f"No descriptions for {len(missing)} of {len(names)} classes, among them {missing[0]!r}; there are some for "
                f"{', '.join(map(repr, list(descriptions)[:3]))}, …"
            )
    rows = []
    for name in names:
        prompts = descriptions[name] if descriptions else [template.format(name) for template in templates]
        rows.append(normalize(embed(prompts), dim=-1).mean(0))
    classes = torch.stack(rows)
    return normalize(classes, dim=-1) if renormalise else classes


def zero_shot_top1(images: Tensor, classes: Tensor, labels: Sequence[int]) -> float:
    """Share of images whose nearest class is their own.

    Args:
        images: `[images, dim]`.
        classes: `[classes, dim]`, from `class_embeddings`.
        labels: each image's class, a number from 0.

    Raises:
        ValueError: a number of labels that is not that of the images, or a label beyond the classes.
    """
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images have {len(labels)} labels: expected one each, in the same order.")
    outside = sorted({int(label) for label in labels if not 0 <= int(label) < len(classes)})
    if outside:
        raise ValueError(
            f"The class list has {len(classes)} names (labels 0 to {len(classes) - 1}), but the labels name {outside[:5]}: "
            "give the list the labels were made with."
        )
    own = torch.as_tensor(labels, device=images.device)
    return (images @ classes.T).argmax(1).eq(own).float().mean().item()


def read_templates(path: str | Path) -> list[str]:
    """One template a line, `{}` for the class' name; empty lines are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line without `{}`, or no line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Templates were expected at {path}: there is no such file.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    bad = [number for number, line in enumerate(lines, 1) if "{}" not in line]
    if bad or not lines:
        raise ValueError(
            f"{path}: expected a line with {{}} for every template, got {f'line {bad[0]} without' if bad else 'no line'}."
        )
    return lines
