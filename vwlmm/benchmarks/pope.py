"""POPE: does the model see objects that are not there? (Li et al. 2023), three subsets of yes/no questions on COCO.

`vwlmm score pope --annotations coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json --questions
llava_pope_test.jsonl --answers answers.jsonl`. The figure in papers is the mean of the three F1.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import prompts
from .benchmark import Answer, Benchmark, Files, Question, Score
from .official_files import Record, find_files, read_json_lines

SUBSETS = ("random", "popular", "adversarial")


def parse_yes_no(text: str) -> str:
    """Official: "no" when No, no or not is a word of the first sentence, else "yes", whatever the text says."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


@dataclass(frozen=True)
class _Asked:
    """One line of the file that the answers' ids come from, and the question it asks."""

    number: str
    text: str
    image: str
    category: str
    question: str


class POPE(Benchmark):
    """Questions are `subset/question_id`, because ids repeat across the three label files.

    Answers may be ours, LLaVA's (ids of its questions file, `--questions`; without one, ids of the label file), or
    official (`question`, `answer`, in the order of the label files). All are checked against the question's text.
    """

    name = "pope"
    title = "POPE"
    published = {
        "LLaVA-1.5-7B": 85.9,
        "VW-LMM Vicuna-7B": 85.9,
        "VW-LMM Mistral-7B": 87.0,
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[_Asked] = []

    def files(self, data: Path) -> Files:
        """The three label files and COCO's val2014 pictures."""
        *labels, images = find_files(data, self.name, *(f"coco_pope_{subset}.json" for subset in SUBSETS), "val2014")
        return Files(tuple(labels), (), images)

    def read(self, files: Files) -> list[Question]:
        """The questions of the label files; LLaVA's questions file only says what its ids mean."""
        if not files.annotations:
            raise ValueError("pope: expected --annotations with coco_pope_random.json, …, found none.")
        questions = [question for path in files.annotations for question in _labels(path)]
        categories = [question.record["category"] for question in questions]
        if len(set(categories)) != len(files.annotations):
            raise ValueError(f"pope: expected one label file a subset, found {', '.join(map(str, files.annotations))}.")
        self.asked = [_of_label_file(question) for question in questions]
        if files.questions:
            self.asked = [asked for path in files.questions for asked in _llava_questions(path, questions)]
            if len(self.asked) != len(questions):
                known = {asked.question for asked in self.asked}
                missing = next((question for question in questions if question.id not in known), questions[0])
                raise ValueError(
                    f"{missing.where}, field text: {missing.record['text']!r} on {missing.record['image']} is in the "
                    f"labels ({len(questions)} lines) but not in {files.questions[0]} ({len(self.asked)} lines). "
                    "POPE's random file has 2,910 lines in LLaVA's copy and 3,000 in today's: take both of one version."
                )
        return questions

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """By our id; by id, text, subset and picture of what was asked; or, officially, line by line with the text."""
        ids = {question.id for question in questions}
        by_number: dict[str, list[_Asked]] = defaultdict(list)
        for asked in self.asked:
            by_number[asked.number].append(asked)
        in_order = _InOrder(self.asked)

        def match(answer: Answer) -> str | None:
            if answer.get("question_id") in ids:
                return answer["question_id"]
            if "question_id" not in answer:
                return in_order.official(answer)
            fitting = [asked for asked in by_number[answer["question_id"]] if _fits(asked, answer)]
            if by_number[answer["question_id"]] and not fitting:
                expected = by_number[answer["question_id"]][0]
                raise ValueError(
                    f"field prompt: question {expected.number} asks {expected.text!r} on {expected.image}, "
                    f"found {_first_line(answer.get('prompt', ''))!r}: answers to another version of the file"
                )
            return in_order.choose(fitting)

        return match

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """The official figures of each subset, and their means; F1 is the main one."""
        details = [_detail(question, answers[question.id]["text"]) for question in questions]
        categories = list(dict.fromkeys(detail["category"] for detail in details))
        subsets = {name: _metrics([d for d in details if d["category"] == name]) for name in categories}
        metrics = {
            name: sum(subset[name] for subset in subsets.values()) / len(subsets)
            for name in ("f1", "accuracy", "precision", "recall", "yes_ratio")
        }
        for category, subset in subsets.items():
            metrics |= {f"{category}/{name}": value for name, value in subset.items()}
        notes = [f"f1, accuracy, …: mean over {', '.join(categories)}"]
        for category, subset in subsets.items():
            if not subset["TP"]:
                notes.append(f"{category}: no yes was right; where the official script divides by zero, 0 is given")
        return Score(metrics, details, notes)


class _InOrder:
    """Follows the answers file line by line along the file of questions, for what ids alone do not tell apart."""

    def __init__(self, asked: Sequence[_Asked]) -> None:
        self.asked = asked
        self.next = 0
        self.kept = True  # every line so far was that of the same place in the questions file
        self.chosen: _Asked | None = None

    def official(self, answer: Answer) -> str | None:
        """Official answers have the question's text and no id: the order is checked by it."""
        if self.next >= len(self.asked):
            raise ValueError(f"field question: expected {len(self.asked)} answers, as the labels have, found more")
        asked, found = self.asked[self.next], answer.get("question")
        self.next += 1
        if found is None:
            raise ValueError(
                "field question_id: expected question_id, or question as official answers have; found none"
            )
        if _first_line(found) != asked.text:
            raise ValueError(
                f"field question: expected {asked.text!r} as in the same place of the labels, found {found!r}: "
                "answers and labels are of different versions, or in different orders"
            )
        return asked.question

    def choose(self, fitting: Sequence[_Asked]) -> str | None:
        """The only one that fits; of several, the one in this place, as long as the whole file is in order."""
        here = self.asked[self.next] if self.next < len(self.asked) else None
        self.next += 1
        self.kept = self.kept and here in fitting
        if len(fitting) > 1 and self.chosen is None:
            self.chosen = fitting[0]
        if self.chosen is not None and not self.kept:
            raise ValueError(
                f"field question_id: {self.chosen.number} stands for questions of several subsets "
                f"({self.chosen.text!r}), and the answers are not in the order of the questions: "
                "give LLaVA's questions file with --questions, or write `category` into every line"
            )
        if len(fitting) > 1 and here is not None:
            return here.question
        return fitting[0].question if fitting else None


def _subset(path: Path) -> str:
    """The subset is in a file's name: coco_pope_SUBSET.json."""
    return re.sub(r"^.*pope_", "", path.stem)


def _labels(path: Path) -> list[Question]:
    """One label file."""
    category = _subset(path)
    questions: dict[str, Question] = {}
    for record in read_json_lines(path):
        number, text = str(record.get("question_id", int, str)), record.get("text", str)
        image, label = record.get("image", str), record.get("label", str)
        if label not in ("yes", "no"):
            raise record.error("label", f"expected yes or no, found {label!r}")
        name = f"{category}/{number}"
        if name in questions:
            raise record.error("question_id", f"expected each question once in a label file, found {number} again")
        questions[name] = Question(
            id=name,
            messages=prompts.user_turn(text, prompts.SHORT_ANSWER),
            images=(image,),
            record={"category": category, "number": number, "image": image, "text": text, "label": label},
            where=record.where,
        )
    return list(questions.values())


def _of_label_file(question: Question) -> _Asked:
    record = question.record
    return _Asked(record["number"], record["text"], record["image"], record["category"], question.id)


def _llava_questions(path: Path, questions: Sequence[Question]) -> list[_Asked]:
    """The lines of LLaVA's questions file, each with the labelled question of its subset, picture and text.

    Where these three are alike for several, ids tell them apart if both files number the subset alike, else the order.
    """
    labelled: dict[tuple[str, str, str], list[Question]] = defaultdict(list)
    numbers: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        facts = question.record
        labelled[facts["category"], facts["image"], facts["text"]].append(question)
        numbers[facts["category"]].add(facts["number"])
    lines = [_asked_line(path, record) for record in read_json_lines(path)]
    asked_numbers: dict[str, set[str]] = defaultdict(set)
    for _, line in lines:
        asked_numbers[line.category].add(line.number)
    found = []
    for record, line in lines:
        fitting = labelled[line.category, line.image, line.text]
        if not fitting:
            raise record.error(
                "text",
                f"expected a question of the label files, found {line.text!r} on {line.image} in subset {line.category}: "
                "the files do not belong together, or a label file is missing",
            )
        same = fitting[0]
        if asked_numbers[line.category] == numbers[line.category]:
            same = next((question for question in fitting if question.record["number"] == line.number), same)
        fitting.remove(same)
        found.append(replace(line, question=same.id))
    return found


def _asked_line(path: Path, record: Record) -> tuple[Record, _Asked]:
    category = record.get("category", str) if "category" in record.value else _subset(path)
    number, text = str(record.get("question_id", int, str)), _first_line(record.get("text", str))
    return record, _Asked(number, text, record.get("image", str), category, "")


def _fits(asked: _Asked, answer: Answer) -> bool:
    return (
        (not answer.get("prompt") or _first_line(answer["prompt"]) == asked.text)
        and answer.get("category", asked.category) == asked.category
        and answer.get("image", asked.image) == asked.image
    )


def _first_line(text: str) -> str:
    """The question without the instruction under it."""
    return text.removeprefix("<image>\n").split("\n")[0]


def _detail(question: Question, text: str) -> dict[str, Any]:
    parsed, label = parse_yes_no(text), question.record["label"]
    return {
        "question_id": question.id,
        "category": question.record["category"],
        "text": text,
        "parsed": parsed,
        "label": label,
        "correct": parsed == label,
    }


def _metrics(details: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    pairs = [(detail["parsed"], detail["label"]) for detail in details]
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    tn, fn = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    precision = tp / (tp + fp) if tp else 0.0
    recall = tp / (tp + fn) if tp else 0.0
    return {
        "f1": 2 * precision * recall / (precision + recall) if tp else 0.0,
        "accuracy": (tp + tn) / len(pairs),
        "precision": precision,
        "recall": recall,
        "yes_ratio": (tp + fp) / len(pairs),
        "TP": tp,
        "FP": fp,
        "TN": tn,
        "FN": fn,
    }
