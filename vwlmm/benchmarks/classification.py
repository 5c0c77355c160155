"""Zero-shot classification: the class whose text is most like the picture; 13 sets of CLIP and freeze-align.

`vwlmm score classification --option set=pets --annotations annotations/test.txt --answers answers.jsonl`
Protocol: CLIP (arXiv 2103.00020) and freeze-align (arXiv 2409.19425).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmark import Answer, Files, Question, Score
from .class_vectors import class_vectors, read_class_names, sentences
from .classification_sets import LAYOUTS, LabelledSet
from .engines import EmbedBenchmark, Embedder
from .official_files import mean
from .retrieval import check_scores, in_batches

# Top-1 of freeze-align's table, percent.
_PUBLISHED = {
    "imagenet": 76.3,
    "imagenetv2": 69.2,
    "caltech101": 92.8,
    "pets": 92.1,
    "cars": 73.9,
    "flowers102": 78.4,
    "food101": 89.1,
    "aircraft": 28.1,
    "sun397": 72.6,
    "cub": 66.1,
    "ucf101": 73.2,
}
_KEPT = 5  # scores of so many classes are written, and of those that tie with the last


class Classification(EmbedBenchmark):
    """One question a picture; its id is the picture's name below the pictures' folder.

    A line of the answers file has `scores` (a number for each class, or an object from class number to score where the
    others are lower), `label` (the predicted class number, from 0) or `text` (the predicted class's name).
    """

    name = "classification"
    title = "Zero-shot classification"
    answer_fields = ("scores", "label", "text", "prediction")
    answer_kind = list
    options = {
        "set": "folders",  # or one of classification_sets.LAYOUTS
        "templates": "single",  # "single": photo of {class}; "clip": those of CLIP; "file": those of template_file
        "template_file": None,  # JSON: templates, or sentences for each class
        "class_names": None,  # file with names in the order of class numbers, instead of the set's own
        "class_vectors": "mean",  # "released": as freeze-align's code builds them
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        choices = {
            "set": tuple(LAYOUTS),
            "templates": ("single", "clip", "file"),
            "class_vectors": ("mean", "released"),
        }
        for name, known in choices.items():
            if self.settings[name] not in known:
                raise ValueError(f"classification: expected {name} {', '.join(known)}, found {self.settings[name]!r}.")
        published = _PUBLISHED.get(self.settings["set"])
        if published:
            self.published = {"freeze-align DINOv2-ARL": published}  # type: ignore[misc]  # of this set
        self.class_names: list[str] = []

    def files(self, data: Path) -> Files:
        """The official files of `set`, in `data` or its folder of the set's name."""
        name = self.settings["set"]
        layout = LAYOUTS[name]
        root = data / name if (data / name).is_dir() else data
        missing = [part for part in (*layout.annotations, layout.images) if not (root / part).exists()]
        if missing:
            raise FileNotFoundError(f"classification: {root} has no {', '.join(missing)} of {name}.")
        return Files(tuple(root / part for part in layout.annotations), (), root / layout.images)

    def read(self, files: Files) -> list[Question]:
        """One question a picture, in the official order."""
        name = self.settings["set"]
        layout = LAYOUTS[name]
        if len(files.annotations) != len(layout.annotations):
            wanted = " ".join(layout.annotations) or "no annotations but --images DIR"
            raise ValueError(
                f"classification: {name} is read from {wanted}; found {len(files.annotations)} annotations."
            )
        try:
            found = layout.read(files.annotations, files.images)
        except ValueError as problem:
            raise ValueError(f"classification: {problem}.") from problem
        self.class_names = self._names(found)
        questions: dict[str, Question] = {}
        for image, label, where in found.pictures:
            if image in questions:
                raise ValueError(f"{where}: expected each picture once, found {image} again.")
            record = {"label": label, "class": self.class_names[label]}
            questions[image] = Question(id=image, messages=(), images=(image,), record=record, where=where)
        return list(questions.values())

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """By id; the prediction is checked here, where its place is known."""
        ids = {question.id for question in questions}

        def match(answer: Answer) -> str | None:
            if answer.get("question_id") not in ids:
                return None
            self._ranked(answer)
            return answer["question_id"]

        return match

    def answer_all(self, questions: Sequence[Question], embedder: object, batch_size: int) -> Iterator[dict[str, Any]]:
        """Scores of the best five classes, and of those that tie with the fifth."""
        assert isinstance(embedder, Embedder)
        file = self.settings["template_file"]
        groups = sentences(
            self.class_names, self.settings["templates"], Path(file) if file else None, self.settings["set"]
        )
        embed = lambda texts: in_batches(embedder.embed_texts, texts, batch_size)  # noqa: E731
        vectors = class_vectors(embed, groups, self.settings["class_vectors"])  # [classes, dim]
        for start in range(0, len(questions), batch_size):
            part = questions[start : start + batch_size]
            scores = in_batches(embedder.embed_images, [q.images[0] for q in part], batch_size) @ vectors.T
            for question, row in zip(part, scores, strict=True):
                lowest = row.topk(min(_KEPT, len(row))).values[-1]
                kept = (row >= lowest).nonzero().flatten().tolist()
                yield {"question_id": question.id, "scores": {str(i): float(row[i]) for i in kept}}

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Top-1, top-5 where scores were given, and the mean of the classes' top-1."""
        details = [self._detail(question, answers[question.id]) for question in questions]
        by_class: dict[str, list[bool]] = defaultdict(list)
        for detail in details:
            by_class[detail["class"]].append(detail["rank"] == 1)
        metrics = {"top1": mean(detail["rank"] == 1 for detail in details)}
        notes = [f"{len(self.class_names)} classes, {len(questions)} pictures; a tie counts against the model"]
        if all("scores" in answers[question.id] for question in questions):
            metrics["top5"] = mean(0 < detail["rank"] <= 5 for detail in details)
        else:
            notes.append("no top-5: some answers name one class only")
        metrics["mean_per_class"] = mean(mean(hits) for hits in by_class.values())
        return Score(metrics, details, notes)

    def _names(self, found: LabelledSet) -> list[str]:
        if self.settings["class_names"] is None:
            if self.settings["set"] == "flowers102":
                raise ValueError(
                    "classification: flowers102 numbers its classes: give their names with class_names=FILE."
                )
            return found.class_names
        names = read_class_names(Path(self.settings["class_names"]))
        if len(names) != len(found.class_names):
            raise ValueError(
                f"{self.settings['class_names']}: expected {len(found.class_names)} class names as the labels have, "
                f"found {len(names)}."
            )
        return names

    def _ranked(self, answer: Answer) -> dict[int, float]:
        """Score by class number; a single prediction is a score of one class.

        Raises:
            ValueError: names field, expectation and what is there.
        """
        count = len(self.class_names)
        scores = answer.get("scores")
        if isinstance(scores, dict):
            for key in scores:
                if not key.isdigit() or int(key) >= count:
                    raise ValueError(f"field scores: expected class numbers from 0 to {count - 1}, found {key!r}")
            check_scores(list(scores.values()), len(scores), "classes")
            return {int(key): value for key, value in scores.items()}
        if scores is not None:
            check_scores(scores, count, "classes")
            return dict(enumerate(scores))
        label = answer.get("label")
        if label is None:
            text = str(answer.get("text", "")).strip()
            if text not in self.class_names:
                raise ValueError(f"field text: expected one of {count} class names, found {text!r}")
            label = self.class_names.index(text)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < count:
            raise ValueError(f"field label: expected a class number from 0 to {count - 1}, found {label!r}")
        return {label: 1.0}

    def _detail(self, question: Question, answer: Answer) -> dict[str, Any]:
        scores, label = self._ranked(answer), question.record["label"]
        best = max(scores, key=scores.__getitem__)
        # 0: not among the classes that were given.
        rank = sum(value >= scores[label] for value in scores.values()) if label in scores else 0
        return {
            "question_id": question.id,
            "class": question.record["class"],
            "predicted": self.class_names[best],
            "rank": rank,
        }
