"""ScienceQA: school questions with two to five choices, about half with a picture (Lu et al. 2022), as LLaVA-1.5 asks.

`vwlmm score scienceqa --annotations problems.json pid_splits.json --answers answers.jsonl`. Papers report `image_accuracy`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import prompts
from .benchmark import Answer, Benchmark, Files, Question, Score
from .official_files import Record, dict_records, find_files, list_records, mean, outline, read_json

LETTERS = "ABCDE"
FAILED = "FAILED"


def parse_letter(text: str) -> str:
    """LLaVA's reading of an answer: a letter alone, "X. " at the start, one "The answer is X" and a character after it."""
    if len(text) == 1 and text in LETTERS:
        return text
    if text[:1] and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else FAILED


class ScienceQA(Benchmark):
    """LLaVA's rule: what cannot be read, and a problem without an answer, is wrong; no guess is made.

    A question counts as one with a picture when its prompt in the answers file has `<image>`. LLaVA's converted file
    (`llava_test_CQM-A.json`), given as a questions file, replaces the prompts that are built here.
    """

    name = "scienceqa"
    title = "ScienceQA"
    max_new_tokens = 1024
    options = {"split": "test"}
    published = {
        "LLaVA-1.5-7B": 66.8,
        "VW-LMM Vicuna-7B": 68.1,
        "VW-LMM Mistral-7B": 75.9,
    }

    def files(self, data: Path) -> Files:
        """`problems.json`, `pid_splits.json`, and the folder `images` beside them with `SPLIT/ID/image.png`."""
        problems, splits = find_files(data, self.name, "problems.json", "pid_splits.json")
        return Files((problems, splits), (), find_files(problems.parent, self.name, "images")[0])

    def read(self, files: Files) -> list[Question]:
        """The problems of the split, in the order of `pid_splits.json`, or of `problems.json` where that is not given."""
        problems: dict[str, Record] = {}
        ids: list[str] | None = None
        asked: dict[str, str] = {}
        for path in (*files.annotations, *files.questions):
            document = read_json(path)
            if isinstance(document, list):
                asked |= _llava_prompts(path, document)
            elif isinstance(document, dict) and document and all(isinstance(v, list) for v in document.values()):
                ids = [str(name) for name in Record(path, document).get(str(self.settings["split"]), list)]
            else:
                problems |= dict_records(path, document, "ScienceQA's problems")
        if not problems:
            raise ValueError("scienceqa: expected problems.json among --annotations, found no such file.")
        for record in problems.values():
            _check(record)
        if ids is None:
            ids = [name for name, record in problems.items() if record.get("split", str) == self.settings["split"]]
        if not ids:
            raise ValueError(f"scienceqa: expected problems of split {self.settings['split']!r}, found none.")
        unknown = [name for name in ids if name not in problems]
        if unknown:
            raise ValueError(f"pid_splits.json, field {self.settings['split']}: {unknown[0]} is not in problems.json.")
        return [self._question(name, problems[name], asked.get(name)) for name in ids]

    def _question(self, name: str, record: Record, asked: str | None) -> Question:
        image = record.value["image"]
        lines = [asked] if asked is not None else _lines(record.value)
        return Question(
            id=name,
            messages=prompts.user_turn(*lines, prompts.OPTION_LETTER, image=image is not None),
            images=() if image is None else (f"{record.value['split']}/{name}/{image}",),
            record=record.value,
            where=record.where,
        )

    def answer_prompt(self, question: Question) -> str:
        """With `<image>` before it where there is a picture: the scorer reads it."""
        return ("<image>\n" if question.images else "") + question.prompt

    def may_be_missing(self, question: Question) -> bool:
        """LLaVA's script counts a problem without an answer as wrong."""
        return True

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Accuracy over questions with a picture (the papers' figure) and over all."""
        details = [_detail(question, answers.get(question.id)) for question in questions]
        with_image = [detail["correct"] for detail in details if detail["has_image"]]
        correct = sum(detail["correct"] for detail in details)
        metrics = {"image_accuracy": mean(with_image)} if with_image else {}
        metrics |= {"accuracy": correct / len(details), "correct": correct, "count": len(details)}
        metrics |= {"image_correct": sum(with_image), "image_count": len(with_image)}
        notes = [] if with_image else ["no answer has <image> in its prompt: there is no image_accuracy"]
        missing = sum(question.id not in answers for question in questions)
        if missing:
            notes.append(f"{missing} of {len(questions)} problems have no answer: wrong, as in LLaVA's script")
        return Score(metrics, details, notes)

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """LLaVA's result file; ScienceQA has no server."""
        details = [_detail(question, answers.get(question.id)) for question in questions]
        correct = sum(detail["correct"] for detail in details)
        result = {
            "acc": 100 * correct / len(details),
            "correct": correct,
            "count": len(details),
            "results": {detail["question_id"]: detail["pred_index"] for detail in details},
            "outputs": {detail["question_id"]: detail["text"] for detail in details},
        }
        path = folder / "scienceqa_result.json"
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False))
        return path


def _check(record: Record) -> None:
    record.get("question", str)
    record.get("hint", str)
    record.get("split", str)
    choices = record.get("choices", list)
    if not 2 <= len(choices) <= len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        raise record.error("choices", f"expected two to five texts, found {choices}")
    if not 0 <= record.get("answer", int) < len(choices):
        raise record.error(
            "answer", f"expected the place of one of {len(choices)} choices, found {record.value['answer']}"
        )
    if "image" not in record.value or record.value["image"] is not None:
        record.get("image", str)


def _lines(problem: Mapping[str, Any]) -> list[str]:
    """Context (the hint, if there is one), question and choices: LLaVA's CQM order."""
    hint = problem["hint"].strip()
    context = [f"Context: {hint}"] if hint else []
    choices = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem["choices"], strict=False)]
    return [*context, problem["question"], *choices]


def _llava_prompts(path: Path, document: list[Any]) -> dict[str, str]:
    found = {}
    for record in list_records(path, document, None, "LLaVA's converted problems"):
        turns = record.get("conversations", list)
        if not turns or not isinstance(turns[0], dict) or not isinstance(turns[0].get("value"), str):
            raise record.error("conversations", f"expected turns with a value, found {outline(turns)}")
        found[str(record.get("id", str, int))] = turns[0]["value"].replace("<image>", "").strip()
    return found


def _detail(question: Question, answer: Answer | None) -> dict[str, Any]:
    """One problem. The picture flag comes from the prompt, so a problem without an answer has none."""
    text = answer["text"] if answer is not None else FAILED
    has_image = answer is not None and "<image>" in answer.get("prompt", "<image>" if question.images else "")
    letter = parse_letter(text)
    valid = LETTERS[: len(question.record["choices"])]
    index = valid.index(letter) if letter in valid else -1
    return {
        "question_id": question.id,
        "text": text,
        "parsed": letter,
        "pred_index": index,
        "answer": question.record["answer"],
        "correct": index == question.record["answer"],
        "has_image": has_image,
    }
