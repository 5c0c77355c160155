"""A benchmark of pictures and words that tests make on the spot: right is the answer that the file holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from PIL import Image

from vwlmm.benchmarks import Answer, Benchmark, Files, Question, Score


class Toy(Benchmark):
    name = "toy"
    title = "Toy"
    max_new_tokens = 6
    options: ClassVar = {"polite": False}
    published: ClassVar = {"Paper-7B": 50.0}

    def files(self, data: Path) -> Files:
        if not (data / "toy.json").is_file():
            raise FileNotFoundError(f"toy: expected toy.json in {data}.")
        return Files(annotations=(data / "toy.json",), images=data / "images")

    def read(self, files: Files) -> list[Question]:
        rows = json.loads(files.annotations[0].read_text())
        please = " Please!" if self.settings["polite"] else ""
        return [
            Question(
                id=str(row["id"]),
                messages=[
                    {
                        "role": "user",
                        "content": [
                            *({"type": "image"} for _ in row["images"]),
                            {"type": "text", "text": "\n" + row["question"] + please},
                        ],
                    }
                ],
                images=tuple(row["images"]),
                record=row,
            )
            for row in rows
        ]

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        earned = [answers[question.id]["text"] == question.record["answer"] for question in questions]
        details = [{"question_id": q.id, "right": right} for q, right in zip(questions, earned, strict=True)]
        return Score({"accuracy": sum(earned) / len(earned)}, details)

    def write_submission(
        self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path
    ) -> Path | None:
        path = folder / "submission.json"
        path.write_text(json.dumps({question.id: answers[question.id]["text"] for question in questions}))
        return path


def write_toy(folder: Path, count: int = 11) -> Path:
    """Questions of unequal length about 0, 1 or 2 pictures."""
    (folder / "images").mkdir(parents=True)
    colours = ["red", "green", "blue", "black", "white"]
    for colour in colours:
        Image.new("RGB", (31, 40), colour).save(folder / "images" / f"{colour}.png")
    rows = []
    for number in range(count):
        images = [f"{colours[(number + k) % 5]}.png" for k in range((1, 1, 0, 2)[number % 4])]
        question = "What colour is this?" + " Look at it again." * (number % 3)
        rows.append({"id": number, "images": images, "question": question, "answer": colours[number % 5]})
    (folder / "toy.json").write_text(json.dumps(rows))
    return folder


class Letters(Toy):
    """The same questions, scored so that an untrained model's answers earn something: letters an answer."""

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        return Score({"letters": sum(len(answers[question.id]["text"]) for question in questions) / len(questions)})
