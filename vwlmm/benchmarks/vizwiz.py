"""VizWiz-VQA: questions that blind people asked about their own pictures (Gurari et al. 2018), as LLaVA-1.5 asks them.

`vwlmm score vizwiz --annotations val.json --answers answers.jsonl`. Papers report test, which its server scores.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import prompts
from .benchmark import Answer, Benchmark, Files, Question, Score
from .official_files import find_files, has_labels, list_records, only_file, read_json
from .vqa_accuracy import NUM_ANNOTATORS, evalai_normalise, normalise, score_by_answer_type, vizwiz_accuracy


class VizWiz(Benchmark):
    """Scored by rule (b) of `vqa_accuracy`; a picture has one question, so its name is the id.

    LLaVA's answers have the number in the picture's name as id: 7 is VizWiz_test_00000007.jpg.
    """

    name = "vizwiz"
    title = "VizWiz"
    options = {"split": "test"}
    id_fields = ("question_id", "image")
    published = {
        "LLaVA-1.5-7B": 50.0,
        "VW-LMM Vicuna-7B": 48.3,
        "VW-LMM Mistral-7B": 58.5,
    }

    def files(self, data: Path) -> Files:
        """`SPLIT.json` and the pictures in the folder SPLIT beside it; split is val or test."""
        split = self.settings["split"]
        (questions,) = find_files(data, self.name, f"{split}.json")
        return Files((questions,), (), find_files(questions.parent, self.name, str(split))[0])

    def read(self, files: Files) -> list[Question]:
        """All questions in the official order."""
        path = only_file(files, self.name, "val.json or test.json")
        questions: dict[str, Question] = {}
        for record in list_records(path, read_json(path), None, "VizWiz's questions"):
            image, text = record.get("image", str), record.get("question", str)
            if image in questions:
                raise record.error("image", f"expected each picture once, found {image} again")
            if "answers" in record.value:
                record.get("answer_type", str)
                for index in range(len(record.get("answers", list, length=NUM_ANNOTATORS))):
                    record.within("answers", index).get("answer", str)
            turn = prompts.user_turn(text, prompts.UNANSWERABLE, prompts.SHORT_ANSWER)
            questions[image] = Question(image, turn, (image,), record.value, record.where)
        return list(questions.values())

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """By the picture's name, or by the number in it, checked against the prompt where LLaVA has written one."""
        by_name = {question.id: question for question in questions}
        by_number = {_number(question.id): question for question in questions}

        def match(answer: Answer) -> str | None:
            name = answer.get("question_id", "")
            question = by_name.get(name) or (by_number.get(int(name)) if name.isdecimal() else None)
            if question is None:
                return None
            asked, _, added = str(answer.get("prompt", "")).partition(f"\n{prompts.UNANSWERABLE}")
            if added and asked != question.record["question"]:
                raise ValueError(
                    f"field prompt: {question.id} asks {question.record['question']!r}, found {asked!r}: "
                    "answers to another split, or with other ids"
                )
            return question.id

        return match

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Accuracy overall and per answer type."""
        if not has_labels(questions, "answers"):
            return Score({}, notes=["test labels are not public: upload the submission file to EvalAI"])
        details = [_detail(question, answers[question.id]["text"]) for question in questions]
        return score_by_answer_type(details, "the VizWiz rule")

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """EvalAI's list."""
        entries = [
            {"image": question.id, "answer": evalai_normalise(answers[question.id]["text"])} for question in questions
        ]
        path = folder / "vizwiz_submission.json"
        path.write_text(json.dumps(entries, ensure_ascii=False))
        return path


def _number(image: str) -> int | None:
    """7 of VizWiz_test_00000007.jpg."""
    found = re.search(r"(\d+)\.\w+$", image)
    return int(found[1]) if found else None


def _detail(question: Question, text: str) -> dict[str, Any]:
    answers = [answer["answer"] for answer in question.record["answers"]]
    submitted = evalai_normalise(text)
    return {
        "question_id": question.id,
        "answer_type": question.record["answer_type"],
        "text": text,
        "normalised": normalise(text),
        "accuracy": vizwiz_accuracy(text, answers),
        "submission": submitted,
        "submission_accuracy": vizwiz_accuracy(submitted, answers),
        "answers": answers,
    }
