"""MM-Vet: 218 open questions over six capabilities (Yu et al. 2023), graded from 0 to 1 by GPT-4.

`vwlmm score mmvet --annotations mm-vet.json --answers GRADES.json` sums up a finished grade file; with an answers file
and `--submission FOLDER` it writes the file that MM-Vet's online grader takes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import prompts
from .benchmark import Answer, Benchmark, Files, Question, Score
from .official_files import dict_records, find_files, mean, only_file, read_json

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


class MMVet(Benchmark):
    """Papers use gpt-4-0613 through MM-Vet's grader; other judges shift the scores, so no judge is called from here."""

    name = "mmvet"
    title = "MM-Vet"
    max_new_tokens = 1024
    answer_fields = ("text", "answer", "prediction", "score")
    published = {
        "LLaVA-1.5-7B": 30.5,
        "VW-LMM Vicuna-7B": 31.3,
        "VW-LMM Mistral-7B": 44.0,
    }

    def files(self, data: Path) -> Files:
        """`mm-vet.json` and the folder `images` beside it."""
        (questions,) = find_files(data, self.name, "mm-vet.json")
        return Files((questions,), (), find_files(questions.parent, self.name, "images")[0])

    def read(self, files: Files) -> list[Question]:
        """All questions, asked bare: no instruction is added."""
        path = only_file(files, self.name, "mm-vet.json")
        questions = []
        for name, record in dict_records(path, read_json(path, unique_names=True), "MM-Vet's questions"):
            unknown = [c for c in record.get("capability", list) if c not in CAPABILITIES]
            if unknown or not record.value["capability"]:
                raise record.error("capability", f"expected some of {', '.join(CAPABILITIES)}, found {unknown}")
            record.get("answer", str)
            turn = prompts.user_turn(record.get("question", str))
            questions.append(Question(name, turn, (record.get("imagename", str),), record.value, record.where))
        return questions

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """`v1_7`, or 7 as LLaVA has it. Grades are checked here, where file and line are known."""
        ids = {question.id for question in questions}

        def match(answer: Answer) -> str | None:
            if "score" in answer:
                _grades(answer)
            name = answer.get("question_id", "")
            return next((known for known in (name, f"v1_{name}") if known in ids), None)

        return match

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Mean grade, over all questions and over those that need each capability; over all runs of the grader."""
        graded = [question for question in questions if "score" in answers[question.id]]
        if not graded:
            return Score({}, notes=["answers need GPT-4's grades: send the submission file to MM-Vet's online grader"])
        if len(graded) < len(questions):
            bare = next(question.id for question in questions if "score" not in answers[question.id])
            raise ValueError(f"mmvet, field score: expected a grade for every question, found none for {bare}.")
        details = [_detail(question, answers[question.id]) for question in questions]
        runs = {len(detail["grades"]) for detail in details}
        if len(runs) > 1:
            raise ValueError(f"mmvet, field score: expected as many grades for every question, found {sorted(runs)}.")
        metrics = {"total": mean(detail["score"] for detail in details)}
        for capability in CAPABILITIES:
            if chosen := [detail["score"] for detail in details if capability in detail["capability"]]:
                metrics[capability] = mean(chosen)
        judges = sorted({model for q in questions for model in answers[q.id].get("model", [])})
        return Score(metrics, details, [f"grades: {runs.pop()} run(s) of {', '.join(judges) or 'a judge not named'}"])

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """The online grader's file: every id and its answer."""
        bare = next((question.id for question in questions if "text" not in answers[question.id]), None)
        if bare is not None:
            raise ValueError(f"mmvet, field text: expected the answer to {bare}, found a grade only.")
        path = folder / "mmvet_submission.json"
        texts = {question.id: answers[question.id]["text"] for question in questions}
        path.write_text(json.dumps(texts, indent=2, ensure_ascii=False))
        return path


def _grades(answer: Answer) -> list[float]:
    """The grades of one answer, one a run of the grader."""
    grades = answer["score"] if isinstance(answer["score"], list) else [answer["score"]]
    for grade in grades:
        if isinstance(grade, bool) or not isinstance(grade, int | float) or not 0 <= grade <= 1:
            raise ValueError(f"field score: expected numbers from 0 to 1, found {grade!r}")
    judges = answer.get("model", [])
    if not isinstance(judges, list) or not all(isinstance(judge, str) for judge in judges):
        raise ValueError(f"field model: expected a list of the judge's names, found {judges!r}")
    if not grades:
        raise ValueError("field score: expected at least one grade, found none")
    return grades


def _detail(question: Question, answer: Answer) -> dict[str, Any]:
    grades = _grades(answer)
    return {
        "question_id": question.id,
        "capability": list(question.record["capability"]),
        "grades": grades,
        "score": mean(grades),
    }
