"""Few-shot VQAv2: 0, 1, 2 or 4 answered questions from the training set before the question, pictures between the text.

`vwlmm score fewshot_vqav2 --annotations v2_mscoco_val2014_annotations.json --answers answers.jsonl`
Protocol: VLAP (arXiv 2404.09632) after LiMBeR; its exact wording is not published, so `template` is a setting.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .benchmark import Answer, Files, Question, Score
from .official_files import find_files
from .vqav2 import VQAv2

_TRAIN = ("v2_mscoco_train2014_annotations.json", "v2_OpenEnded_mscoco_train2014_questions.json")
_VAL = ("v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json")
# A base model goes on with the next "Question:"; the answer is what it wrote before.
_END = re.compile(r"[\n.]")


def cut_answer(text: str) -> str:
    """The text up to its first newline or full stop, blanks and newlines in front left out."""
    return _END.split(text.strip(), maxsplit=1)[0].strip()


class FewShotVQAv2(VQAv2):
    """VQAv2's val questions; scored by VQAv2's rule on the answer cut at the first newline or full stop.

    Annotations and questions files are given in the order val, train; train is needed for asking with shots only. The
    shots of a question depend on `seed` and the question's id alone, so every shard and every limit asks the same.
    """

    name = "fewshot_vqav2"
    title = "VQAv2, few-shot"
    completion = True
    max_new_tokens = 16
    options = {"shots": 0, "seed": 0, "template": "Question: {question} Answer:"}
    published = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        shots, template = self.settings["shots"], self.settings["template"]
        if not isinstance(shots, int) or isinstance(shots, bool) or shots < 0:
            raise ValueError(f"{self.name}: expected shots 0, 1, 2, 4, …, found {shots!r}.")
        if "{question}" not in template:
            raise ValueError(f"{self.name}: expected a template with {{question}} in it, found {template!r}.")

    def files(self, data: Path) -> Files:
        """The val files, the train files when there are shots, and the folder that holds val2014 (and train2014)."""
        parts = [_VAL, _TRAIN] if self.settings["shots"] else [_VAL]
        pictures = ["val2014", "train2014"][: len(parts)]
        found = find_files(data, self.name, *(name for part in parts for name in part), *pictures)
        folders = found[2 * len(parts) :]
        if len({folder.parent for folder in folders}) > 1:
            raise FileNotFoundError(f"{self.name}: expected val2014 and train2014 in one folder, found {folders}.")
        return Files(tuple(found[0 : 2 * len(parts) : 2]), tuple(found[1 : 2 * len(parts) : 2]), folders[0].parent)

    def read(self, files: Files) -> list[Question]:
        """The val questions, each with its shots in front; annotations alone give questions that can only be scored."""
        questions = super().read(Files(files.annotations[:1], files.questions[:1]))
        shots = self.settings["shots"]
        if not files.questions:
            return questions
        train = super().read(Files(files.annotations[1:2], files.questions[1:2])) if len(files.questions) > 1 else []
        if len(train) < shots or (shots and not files.annotations[1:2]):
            raise ValueError(
                f"{self.name}: {shots} shots need the train files behind the val files: --annotations {_VAL[0]} {_TRAIN[0]} "
                f"--questions {_VAL[1]} {_TRAIN[1]}; found {len(train)} train questions."
            )
        self.listed = [int(question.id) for question in questions]
        return [self._with_shots(question, train) for question in questions]

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """VQAv2's accuracy of the answers as they are cut; details keep the whole text as `written`."""
        score = super().score(questions, self._cut(answers))
        details = [{**detail, "written": answers[detail["question_id"]]["text"]} for detail in score.details]
        return Score(score.metrics, details, [*score.notes, "answers cut at the first newline or full stop"])

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """VQAv2's submission list of the answers as they are cut."""
        return super().write_submission(questions, self._cut(answers), folder)

    @staticmethod
    def _cut(answers: Mapping[str, Answer]) -> dict[str, Answer]:
        return {name: {**answer, "text": cut_answer(answer["text"])} for name, answer in answers.items()}

    def _with_shots(self, question: Question, train: Sequence[Question]) -> Question:
        chosen = random.Random(f"{self.settings['seed']}/{question.id}").sample(
            range(len(train)), self.settings["shots"]
        )
        shots = [train[index] for index in chosen]
        content: list[dict[str, Any]] = []
        for shot in shots:
            answer = shot.record.get("multiple_choice_answer")
            if not isinstance(answer, str):
                raise ValueError(f"{shot.where}, field multiple_choice_answer: expected text, found {answer!r}.")
            content += [{"type": "image"}, {"type": "text", "text": f"{self._ask(shot)} {answer}\n"}]
        content += [{"type": "image"}, {"type": "text", "text": self._ask(question)}]
        return replace(
            question,
            messages=[{"role": "user", "content": content}],
            images=tuple(self._picture(part) for part in (*shots, question)),
        )

    def _ask(self, question: Question) -> str:
        # VQAv2's own prompt is the question and LLaVA's instruction on the next line.
        return self.settings["template"].replace("{question}", question.prompt.split("\n")[0])

    @staticmethod
    def _picture(question: Question) -> str:
        name = str(question.images[0])
        return f"{name.split('_')[1]}/{name}"
