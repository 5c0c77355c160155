"""Zero-shot segmentation of PASCAL VOC 2012 val: each patch's cosine with each class name, compared with the masks.

`vwlmm score voc_segmentation --annotations VOC2012/ImageSets/Segmentation/val.txt --answers answers.jsonl`
Protocol: freeze-align (arXiv 2409.19425), appendix A.10; its released script computes something else (`rule=script`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .benchmark import Answer, Files, Question, Score
from .captioning import only_file
from .engines import EmbedBenchmark, PatchEmbedder
from .official_files import find_files, mean, read_text
from .retrieval import in_batches
from .segmentation_metrics import (
    BACKGROUND,
    VOID,
    Overlap,
    from_run_lengths,
    predicted_labels,
    script_iou,
)

_CLASSES = """
    aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa
    train tvmonitor
"""
CLASSES = tuple(_CLASSES.split())
# What a text encoder knows better than the file's compounds.
_SPOKEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


class VOCSegmentation(EmbedBenchmark):
    """One question a picture; labels are 1 to 20 in the order of `CLASSES`, 0 is background.

    A line of the answers file has `scores`, an object from class name (and `background`, if the model has one) to rows
    of patch scores; or `labels`, the predicted label of every pixel row by row as `[label, count]` pairs (not for
    `rule=script`, which looks at each class's scores by themselves).
    """

    name = "voc_segmentation"
    title = "PASCAL VOC segmentation"
    needs = PatchEmbedder
    answer_fields = ("scores", "labels")
    answer_kind = dict
    options = {
        # "foreground": the paper's, pixels of things only; "all": ordinary mIoU; "script": the released script's
        "rule": "foreground",
        "template": "{}",
        "background": None,  # words for the background, a 21st class
        "linear_masks": True,  # rule=script: labels resized bilinearly, as the script does
    }
    published = {"freeze-align DINOv2-ARL": 31.37, "CLIP-L": 23.46}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.settings["rule"] not in ("foreground", "all", "script"):
            raise ValueError(f"{self.name}: expected rule foreground, all or script, found {self.settings['rule']!r}.")
        self.names = [*CLASSES, *(["background"] if self.settings["background"] else [])]

    def files(self, data: Path) -> Files:
        """The list of pictures and their folder, in VOC2012 or VOCdevkit/VOC2012."""
        root = data / "VOCdevkit" if (data / "VOCdevkit").is_dir() else data
        folder = root / "VOC2012" if (root / "VOC2012").is_dir() else root
        listed, images = find_files(folder, self.name, "ImageSets/Segmentation/val.txt", "JPEGImages")
        return Files((listed,), (), images)

    def read(self, files: Files) -> list[Question]:
        """One question a picture; its mask lies in SegmentationClass beside ImageSets."""
        path = only_file(files, self.name, "VOC2012/ImageSets/Segmentation/val.txt")
        masks = path.parent.parent.parent / "SegmentationClass"
        questions: dict[str, Question] = {}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            name, where = line.strip(), f"{path}, line {number}"
            mask = masks / f"{name}.png"
            if not name:
                continue
            if " " in name or not mask.is_file():
                raise ValueError(f"{where}: expected the name of a picture with a mask, found {name!r}; no {mask}.")
            if name in questions:
                raise ValueError(f"{where}: expected each picture once, found {name} again.")
            questions[name] = Question(
                id=name, messages=(), images=(f"{name}.jpg",), record={"mask": mask}, where=where
            )
        if not questions:
            raise ValueError(f"{path}, line 1: expected names of pictures, found none.")
        return list(questions.values())

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """By the picture's name; scores and labels are checked here, where their place is known."""
        ids = {question.id for question in questions}

        def match(answer: Answer) -> str | None:
            if answer.get("question_id") not in ids:
                return None
            if "scores" in answer:
                self._check_scores(answer["scores"])
            elif self.settings["rule"] == "script":
                raise ValueError("field scores: expected scores of every class, which rule=script needs; found labels")
            else:
                _check_labels(answer["labels"])
            return answer["question_id"]

        return match

    def answer_all(self, questions: Sequence[Question], embedder: object, batch_size: int) -> Iterator[dict[str, Any]]:
        """Similarity of every patch with every class, five digits each."""
        assert isinstance(embedder, PatchEmbedder)
        spoken = [
            self.settings["background"] if name == "background" else _SPOKEN.get(name, name) for name in self.names
        ]
        texts = [self.settings["template"].replace("{}", name) for name in spoken]
        vectors = in_batches(embedder.embed_texts, texts, batch_size)  # [classes, dim]
        for question in questions:
            patches = embedder.embed_patches(question.images[0]).detach().float().cpu()  # [rows, columns, dim]
            scores = (patches @ vectors.T).permute(2, 0, 1)  # [classes, rows, columns]
            rounded = {
                name: [[round(value, 5) for value in row] for row in grid]
                for name, grid in zip(self.names, scores.tolist(), strict=True)
            }
            yield {"question_id": question.id, "scores": rounded}

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Mean IoU over the classes, by the rule of the settings."""
        if self.settings["rule"] == "script":
            return self._score_script(questions, answers)
        foreground = self.settings["rule"] == "foreground"
        overlap, details = Overlap(), []
        for question in questions:
            truth, answer = read_mask(question.record["mask"]), answers[question.id]
            predicted = self._predicted(question, answer, truth)
            counted = (truth != VOID) & (truth != BACKGROUND) if foreground else truth != VOID
            labels = [*range(1, len(CLASSES) + 1), *([] if foreground else [BACKGROUND])]
            overlap.add(predicted, truth, labels, counted)
            right = int(((predicted == truth) & counted).sum())
            details.append({"question_id": question.id, "pixels": int(counted.sum()), "right": right})
        by_label = overlap.iou()
        metrics = {"mIoU": mean(by_label.values())} | _by_name(by_label)
        what = "pixels of things only, background and void left out" if foreground else "all pixels but void"
        return Score(metrics, details, [f"highest score of {len(self.names)} classes; IoU over the data set, {what}"])

    def _score_script(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        by_class: dict[int, list[float]] = {}
        pictures: list[float] = []
        details = []
        for question in questions:
            scores = {
                label: torch.tensor(answers[question.id]["scores"][name]) for label, name in enumerate(CLASSES, start=1)
            }
            found = script_iou(scores, read_mask(question.record["mask"]), self.settings["linear_masks"])
            for label, value in found.items():
                by_class.setdefault(label, []).append(value)
            pictures += [mean(found.values())] if found else []
            details.append({"question_id": question.id, "IoU": {CLASSES[k - 1]: v for k, v in found.items()}})
        by_label = {label: mean(values) for label, values in sorted(by_class.items())}
        metrics = {"mIoU": mean(by_label.values()), "mIoU/pictures": mean(pictures)} | _by_name(by_label)
        note = (
            "as the released script: each class in the picture by itself, min-max scaled, threshold 0.4, void as "
            "background; mIoU is the mean of classes, mIoU/pictures of pictures; not the paper's definition"
        )
        return Score(metrics, details, [note])

    def _predicted(self, question: Question, answer: Answer, truth: Tensor) -> Tensor:
        size = (truth.shape[0], truth.shape[1])
        if "labels" in answer:
            try:
                return from_run_lengths(answer["labels"], size)
            except ValueError as problem:
                raise ValueError(f"{self.name}: answer to {question.id}, field labels: {problem}.") from problem
        names = list(answer["scores"])
        scores = torch.tensor([answer["scores"][name] for name in names])
        labels = [BACKGROUND if name == "background" else CLASSES.index(name) + 1 for name in names]
        return predicted_labels(scores, labels, size)

    def _check_scores(self, scores: Any) -> None:
        known = {*CLASSES, "background"}
        if not isinstance(scores, dict) or set(scores) - known or set(CLASSES) - set(scores):
            found = ", ".join(sorted(set(scores) ^ known)[:3]) if isinstance(scores, dict) else repr(scores)[:40]
            raise ValueError(f"field scores: expected rows of scores for each of {len(CLASSES)} classes; found {found}")
        first = torch.tensor(scores[CLASSES[0]])
        for name, rows in scores.items():
            try:
                grid = torch.tensor(rows, dtype=torch.float32)
            except (ValueError, TypeError) as problem:
                raise ValueError(f"field scores.{name}: expected equally long rows of numbers") from problem
            if grid.dim() != 2 or grid.shape != first.shape or not grid.isfinite().all():
                raise ValueError(f"field scores.{name}: expected finite numbers in rows, as many for each class")


def read_mask(path: Path) -> Tensor:
    """Labels of a VOC mask, `[height, width]`: the palette's numbers."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode not in ("P", "L"):
            raise ValueError(f"{path}: expected a mask with a palette, found a picture of mode {picture.mode}.")
        return torch.from_numpy(np.array(picture)).long()


def _check_labels(labels: Any) -> None:
    for index, pair in enumerate(labels if isinstance(labels, list) else [labels]):
        right = isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair)
        if not right or not 0 <= pair[0] <= len(CLASSES) or pair[1] < 1:
            raise ValueError(f"field labels[{index}]: expected [label, count], a label from 0 to 20; found {pair!r}")


def _by_name(by_label: Mapping[int, float]) -> dict[str, float]:
    names = ("background", *CLASSES)
    return {f"IoU/{names[label]}": value for label, value in by_label.items()}
