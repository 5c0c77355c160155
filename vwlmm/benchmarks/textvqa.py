"""TextVQA: questions that can be answered by reading text in the picture (Singh et al. 2019), as LLaVA-1.5 asks them.

`vwlmm score textvqa --annotations TextVQA_0.5.1_val.json --answers answers.jsonl`
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import prompts
from .benchmark import Answer, Benchmark, Files, Question, Score
from .official_files import Record, find_files, has_labels, list_records, mean, read_json
from .vqa_accuracy import NUM_ANNOTATORS, evalai_accuracy, evalai_normalise

_OCR = "TextVQA_Rosetta_OCR_v0.2_{}.json"


def question_of_prompt(prompt: str) -> str:
    """The question in a prompt with or without OCR tokens, lower-cased: LLaVA's half of the join."""
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        return (found[1] if found else "").lower()
    lines = prompt.removeprefix("<image>\n").split("\n")
    return lines[1 if lines[0].startswith("Reference OCR token:") and len(lines) > 1 else 0].lower()


class TextVQA(Benchmark):
    """Scored by rule (c) of `vqa_accuracy`.

    `ocr` puts Rosetta's tokens into the prompt, as LLaVA-1.5 and VW-LMM do; the papers' figures need it. Answers are
    joined by question id, or as LLaVA writes them by picture (which is their `question_id`) and question.
    """

    name = "textvqa"
    title = "TextVQA"
    options = {"split": "val", "ocr": True}
    published = {
        "LLaVA-1.5-7B": 58.2,
        "VW-LMM Vicuna-7B": 57.6,
        "VW-LMM Mistral-7B": 63.1,
    }

    def files(self, data: Path) -> Files:
        """Questions with answers, Rosetta's tokens when `ocr` is on, and the pictures (`train_images`, val's too)."""
        split = self.settings["split"]
        folder = "test_images" if split == "test" else "train_images"
        names = [f"TextVQA_0.5.1_{split}.json", folder, *([_OCR.format(split)] if self.settings["ocr"] else [])]
        annotations, images, *tokens = find_files(data, self.name, *names)
        return Files((annotations,), tuple(tokens), images)

    def read(self, files: Files) -> list[Question]:
        """All questions in the official order. With `ocr` and no token file they can be scored, not asked."""
        if len(files.annotations) != 1 or len(files.questions) > 1:
            raise ValueError(
                "textvqa: expected one --annotations, TextVQA_0.5.1_val.json, and at most one --questions, "
                f"{_OCR.format('val')}; found {len(files.annotations)} and {len(files.questions)}."
            )
        tokens = _tokens(files.questions[0]) if files.questions else {}
        questions: dict[str, Question] = {}
        path = files.annotations[0]
        for record in list_records(path, read_json(path), "data", "TextVQA's questions"):
            name = str(record.get("question_id", int))
            if name in questions:
                raise record.error("question_id", f"expected each question once, found {name} again")
            questions[name] = self._question(name, record, tokens, bool(files.questions))
        return list(questions.values())

    def _question(self, name: str, record: Record, tokens: Mapping[str, list[str]], has_tokens: bool) -> Question:
        text, image = record.get("question", str), record.get("image_id", str)
        if "answers" in record.value:
            for answer in record.get("answers", list, length=NUM_ANNOTATORS):
                if not isinstance(answer, str):
                    raise record.error("answers", f"expected ten texts, found {answer!r} among them")
        lines = [text]
        if self.settings["ocr"] and has_tokens:
            if image not in tokens:
                raise record.error("image_id", f"expected OCR tokens of every picture, found none for {image}")
            lines.append("Reference OCR token: " + ", ".join(tokens[image]))
        can_ask = has_tokens or not self.settings["ocr"]
        turn = prompts.user_turn(*lines, prompts.SHORT_ANSWER) if can_ask else ()
        return Question(name, turn, (f"{image}.jpg",) if can_ask else (), record.value, record.where)

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """By (picture, question) where a line has LLaVA's prompt, else by question id.

        Where one picture has one question twice, answers go to them in turn: nothing tells them apart.
        """
        ids = {question.id for question in questions}
        texts: dict[str, list[str]] = defaultdict(list)
        pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
        for question in questions:
            image, text = question.record["image_id"], question.record["question"].lower()
            texts[image].append(text)
            pairs[image, text].append(question.id)
        turns = {pair: _in_turn(names) for pair, names in pairs.items()}

        def match(answer: Answer) -> str | None:
            name = answer.get("question_id", "")
            asked = question_of_prompt(str(answer.get("prompt", "")))
            if (name, asked) in turns:
                return next(turns[name, asked])
            if name in ids:
                return name
            if name in texts:
                raise ValueError(f"field prompt: picture {name} has questions {texts[name]}, found {asked!r}")
            return None

        return match

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Mean accuracy."""
        if not has_labels(questions, "answers"):
            return Score({}, notes=["test labels are not public: upload the submission file to EvalAI"])
        details = [_detail(question, answers[question.id]["text"]) for question in questions]
        return Score({"accuracy": mean(detail["accuracy"] for detail in details)}, details)

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """EvalAI's list; its server normalises."""
        entries = [{"question_id": int(q.id), "answer": answers[q.id]["text"]} for q in questions]
        path = folder / "textvqa_submission.json"
        path.write_text(json.dumps(entries, ensure_ascii=False))
        return path


def _in_turn(names: Sequence[str]) -> Iterator[str]:
    """Each once, then the last again, which the reader of answers reports as a second answer."""
    yield from names
    while True:
        yield names[-1]


def _tokens(path: Path) -> dict[str, list[str]]:
    found = {}
    for record in list_records(path, read_json(path), "data", "Rosetta's OCR tokens"):
        found[record.get("image_id", str)] = [str(token) for token in record.get("ocr_tokens", list)]
    return found


def _detail(question: Question, text: str) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "image_id": question.record["image_id"],
        "text": text,
        "normalised": evalai_normalise(text),
        "accuracy": evalai_accuracy(text, question.record["answers"]),
        "answers": question.record["answers"],
    }
