"""VQAv2: open questions about COCO pictures, ten annotators each (Goyal et al. 2017), asked as LLaVA-1.5 asks them.

`vwlmm score vqav2 --annotations v2_mscoco_val2014_annotations.json --answers answers.jsonl`
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import prompts
from .benchmark import Answer, Benchmark, Files, Question, Score
from .official_files import Record, find_files, list_records, read_json
from .vqa_accuracy import (
    NUM_ANNOTATORS,
    evalai_normalise,
    normalisation_applies,
    normalise,
    official_accuracy,
    score_by_answer_type,
)

_ANNOTATIONS = "VQAv2's annotations"
_QUESTIONS = "VQAv2's questions"


class VQAv2(Benchmark):
    """Scored by rule (a) of `vqa_accuracy`: once as answered, once as LLaVA submits it (EvalAI's steps first).

    Questions files: the first is asked; a second (test2015) only adds its questions, unanswered, to the submission,
    which the server wants even when test-dev2015 is scored.
    """

    name = "vqav2"
    title = "VQAv2"
    options = {"split": "val2014"}
    published = {
        "LLaVA-1.5-7B": 78.5,
        "VW-LMM Vicuna-7B": 78.9,
        "VW-LMM Mistral-7B": 80.8,
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.listed: list[int] = []  # every id that the submission must have

    def files(self, data: Path) -> Files:
        """The files of `split`: val2014, test-dev2015 or test2015."""
        split = self.settings["split"]
        if split not in ("val2014", "test-dev2015", "test2015"):
            raise ValueError(f"vqav2: expected split val2014, test-dev2015 or test2015, found {split!r}.")
        questions = [f"v2_OpenEnded_mscoco_{split}_questions.json"]
        if split == "test-dev2015":
            questions.append("v2_OpenEnded_mscoco_test2015_questions.json")
        annotations = ["v2_mscoco_val2014_annotations.json"] if split == "val2014" else []
        names = [*questions, *annotations, "val2014" if split == "val2014" else "test2015"]
        *found, images = find_files(data, self.name, *names)
        return Files(tuple(found[len(questions) :]), tuple(found[: len(questions)]), images)

    def read(self, files: Files) -> list[Question]:
        """Questions in the official order; annotations alone give questions that can be scored, not asked."""
        labels = {record.value["question_id"]: record for path in files.annotations for record in _annotations(path)}
        asked = _questions(files.questions[0]) if files.questions else {}
        self.listed = list(asked)
        for path in files.questions[1:]:
            self._list_more(_questions(path), asked)
        if not asked:
            return [Question(str(name), (), (), record.value, record.where) for name, record in labels.items()]
        for name, record in labels.items():
            if name not in asked:
                raise record.error("question_id", f"{name} is not in {files.questions[0]}: files of different splits")
        return [self._question(*entry, labels, bool(files.annotations)) for entry in asked.values()]

    def _list_more(self, more: Mapping[int, tuple[Record, str]], asked: Mapping[int, tuple[Record, str]]) -> None:
        for name, (record, _) in asked.items():
            if name not in more:
                raise record.error("question_id", f"{name} is not in the questions file that should hold them all")
        self.listed = list(more)

    def _question(self, record: Record, split: str, labels: Mapping[int, Record], labelled: bool) -> Question:
        name, image = record.value["question_id"], record.value["image_id"]
        if labelled:
            if name not in labels:
                raise record.error("question_id", f"{name} has no annotation: files of different splits")
            if labels[name].value["image_id"] != image:
                raise labels[name].error("image_id", f"expected {image} as the questions file has it for {name}")
        return Question(
            id=str(name),
            messages=prompts.user_turn(record.get("question", str), prompts.SHORT_ANSWER),
            images=(f"COCO_{split}_{image:012d}.jpg",),
            record=labels[name].value if labelled else record.value,
            where=record.where,
        )

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Accuracy overall and per answer type."""
        if not all("answers" in question.record for question in questions):
            return Score({}, notes=["test labels are not public: upload the submission file to EvalAI"])
        details = [_detail(question, answers[question.id]["text"]) for question in questions]
        return score_by_answer_type(details, "the official rule")

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """EvalAI's list, one entry for every listed question; what was not asked is answered with nothing."""
        listed = [str(name) for name in self.listed] or [question.id for question in questions]
        texts = {question.id: evalai_normalise(answers[question.id]["text"]) for question in questions}
        entries = [{"question_id": int(name), "answer": texts.get(name, "")} for name in listed]
        path = folder / "vqav2_submission.json"
        path.write_text(json.dumps(entries, ensure_ascii=False))
        return path


def _annotations(path: Path) -> list[Record]:
    seen = set()
    records = list(list_records(path, read_json(path), "annotations", _ANNOTATIONS))
    for record in records:
        name = record.get("question_id", int)
        if name in seen:
            raise record.error("question_id", f"expected each question once, found {name} again")
        seen.add(name)
        record.get("image_id", int)
        record.get("answer_type", str)
        for index in range(len(record.get("answers", list, length=NUM_ANNOTATORS))):
            answer = record.within("answers", index)
            answer.get("answer", str)
            answer.get("answer_id", int, str)
    return records


def _questions(path: Path) -> dict[int, tuple[Record, str]]:
    """Id → record and the split in the pictures' names, which for test-dev2015 is test2015."""
    document = read_json(path)
    found: dict[int, tuple[Record, str]] = {}
    records = list(list_records(path, document, "questions", _QUESTIONS))
    split = Record(path, document).get("data_subtype", str)
    for record in records:
        name = record.get("question_id", int)
        if name in found:
            raise record.error("question_id", f"expected each question once, found {name} again")
        record.get("image_id", int)
        found[name] = (record, "test2015" if split.startswith("test") else split)
    return found


def _detail(question: Question, text: str) -> dict[str, Any]:
    annotators = question.record["answers"]
    applies = normalisation_applies(annotators)
    submitted = evalai_normalise(text)
    return {
        "question_id": question.id,
        "answer_type": question.record["answer_type"],
        "text": text,
        "normalised": normalise(text),
        "normalisation_applies": applies,
        "accuracy": official_accuracy(text, annotators),
        "submission": submitted,
        "submission_accuracy": official_accuracy(submitted, annotators),
        "answers": [annotator["answer"] for annotator in annotators],
    }
