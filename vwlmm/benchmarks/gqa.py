"""GQA: compositional questions about scene graphs (Hudson and Manning 2019), test-dev balanced, as LLaVA-1.5 asks them.

`vwlmm score gqa --annotations testdev_balanced_questions.json --answers answers.jsonl`
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import prompts
from .benchmark import Answer, Benchmark, Files, Question, Score
from .official_files import dict_records, find_files, has_labels, mean, only_file, read_json

_QUESTIONS = "testdev_balanced_questions.json"


def prediction(text: str) -> str:
    """What is compared with the answer: full stops at the end go, lower case, as LLaVA's converter does it."""
    return text.rstrip(".").lower()


class GQA(Benchmark):
    """Equality of strings over the balanced questions; open questions are those whose structural type is query.

    `choices` names `<tier>_choices.json`, where a split has one (testdev has none): it adds validity and plausibility.
    """

    name = "gqa"
    title = "GQA"
    options = {"choices": None}
    id_fields = ("question_id", "questionId")
    published = {
        "LLaVA-1.5-7B": 62.0,
        "VW-LMM Vicuna-7B": 62.7,
        "VW-LMM Mistral-7B": 65.4,
    }

    def files(self, data: Path) -> Files:
        """The questions, and the folder `images` beside them."""
        (questions,) = find_files(data, self.name, _QUESTIONS)
        return Files((questions,), (), find_files(questions.parent, self.name, "images")[0])

    def read(self, files: Files) -> list[Question]:
        """All questions of the file, in its order."""
        path = only_file(files, self.name, _QUESTIONS)
        questions = []
        for name, record in dict_records(path, read_json(path, unique_names=True), "GQA's questions"):
            text, image = record.get("question", str), record.get("imageId", str)
            if "answer" in record.value:
                record.get("answer", str)
                record.get("isBalanced", bool)
                record.get("types", dict)
                record.within("types").get("structural", str)
            turn = prompts.user_turn(text, prompts.SHORT_ANSWER)
            questions.append(Question(name, turn, (f"{image}.jpg",), record.value, record.where))
        return questions

    def may_be_missing(self, question: Question) -> bool:
        """Questions outside the balanced set are not scored."""
        return not question.record.get("isBalanced", True)

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Accuracy over all balanced questions, over the open ones and over the binary ones."""
        if not has_labels(questions, "answer"):
            return Score({}, notes=["test labels are not public: upload the submission file to EvalAI"])
        balanced = [question for question in questions if question.record["isBalanced"]]
        if not balanced:
            raise ValueError("gqa: expected balanced questions (isBalanced), found none: take the balanced file.")
        choices = self._choices(balanced)
        details = [_detail(question, answers[question.id]["text"], choices.get(question.id)) for question in balanced]
        metrics = {"accuracy": mean(detail["correct"] for detail in details)}
        for kind in ("open", "binary"):
            if chosen := [detail["correct"] for detail in details if detail["kind"] == kind]:
                metrics[f"accuracy/{kind}"] = mean(chosen)
        for name in ("valid", "plausible") if choices else ():
            metrics["validity" if name == "valid" else "plausibility"] = mean(detail[name] for detail in details)
        notes = (
            [] if len(balanced) == len(questions) else [f"{len(balanced)} of {len(questions)} questions are balanced"]
        )
        return Score(metrics, details, notes)

    def _choices(self, questions: Sequence[Question]) -> dict[str, Mapping[str, Any]]:
        if self.settings["choices"] is None:
            return {}
        path = Path(self.settings["choices"])
        found: dict[str, Mapping[str, Any]] = {}
        for name, record in dict_records(path, read_json(path), "GQA's choices"):
            found[name] = {kind: record.get(kind, list) for kind in ("valid", "plausible")}
        for question in questions:
            if question.id not in found:
                raise ValueError(
                    f"{path}, field {question.id}: expected choices of every question, found none for this."
                )
        return found

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """The official predictions list."""
        entries = [
            {"questionId": question.id, "prediction": prediction(answers[question.id]["text"])}
            for question in questions
            if question.id in answers
        ]
        path = folder / "testdev_balanced_predictions.json"
        path.write_text(json.dumps(entries, ensure_ascii=False))
        return path


def _detail(question: Question, text: str, choices: Mapping[str, Any] | None) -> dict[str, Any]:
    predicted = prediction(text)
    detail = {
        "question_id": question.id,
        "kind": "open" if question.record["types"]["structural"] == "query" else "binary",
        "text": text,
        "prediction": predicted,
        "answer": question.record["answer"],
        "correct": predicted == question.record["answer"],
    }
    if choices is not None:
        detail |= {kind: predicted in choices[kind] for kind in ("valid", "plausible")}
    return detail
