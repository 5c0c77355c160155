"""Visual Dialog 1.0 (Das et al. 2017): the answer of each round is picked among 100 by its likelihood.

`vwlmm score visdial --annotations visdial_1.0_val.json visdial_1.0_val_dense_annotations.json --answers answers.jsonl`
Protocol: FROMAGe (arXiv 2301.13823), which VLAP follows: no training on dialogues, sum of the option's log-probabilities.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .benchmark import Answer, Files, Question, Score
from .engines import RankBenchmark
from .official_files import Record, find_files, list_records, mean, read_json
from .ranking_metrics import ndcg, pessimistic_ranks, ranks_as_permutation
from .retrieval import check_scores

KS = (1, 5, 10)


class VisDial(RankBenchmark):
    """One question a round, `IMAGE/ROUND` with rounds from 1; `record` has `options`, `gt_index` and `relevance`.

    A line of the answers file has `scores`, a log-probability for each option in the file's order, or `ranks` as EvalAI
    takes them (with `image_id` and `round_id`): the rank of each option, 1 is best.
    """

    name = "visdial"
    title = "Visual Dialog"
    completion = True
    answer_fields = ("scores", "ranks")
    answer_kind = list
    options = {"caption": False}  # True: the picture's caption, which the file has, goes before the rounds

    def files(self, data: Path) -> Files:
        """The validation dialogues, their dense annotations, the pictures."""
        *annotations, images = find_files(
            data, self.name, "visdial_1.0_val.json", "visdial_1.0_val_dense_annotations.json", "VisualDialog_val2018"
        )
        return Files(tuple(annotations), (), images)

    def read(self, files: Files) -> list[Question]:
        """Every round that has options; in the test split that is the last."""
        if not 1 <= len(files.annotations) <= 2:
            raise ValueError(
                f"visdial: expected --annotations visdial_1.0_val.json and, for NDCG, "
                f"visdial_1.0_val_dense_annotations.json; found {len(files.annotations)} files."
            )
        dialogs = read_dialogs(files.annotations[0])
        dense = _dense(files.annotations[1]) if len(files.annotations) == 2 else {}
        questions = [question for dialog in dialogs for question in self._rounds(dialog, dense)]
        if dense:
            raise next(iter(dense.values())).error("image_id", f"no such round in {files.annotations[0]}")
        return questions

    def options_of(self, question: Question) -> Sequence[str]:
        """The answers to choose from."""
        return question.record["options"]

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """By our id, or by image and round as EvalAI has them; ranks and scores are checked here."""
        options = {question.id: len(question.record["options"]) for question in questions}

        def match(answer: Answer) -> str | None:
            name = answer.get("question_id") or f"{answer.get('image_id')}/{answer.get('round_id')}"
            if name not in options:
                if "question_id" in answer:
                    return None
                raise ValueError(f"field image_id: no round {answer.get('round_id')} of image {answer.get('image_id')}")
            if "scores" in answer:
                check_scores(answer["scores"], options[name], "options of the round")
            elif sorted(map(repr, answer["ranks"])) != sorted(map(repr, range(1, options[name] + 1))):
                raise ValueError(f"field ranks: expected each of 1 to {options[name]} once, found {answer['ranks']!r}")
            return name

        return match

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """NDCG over the rounds with dense annotations; MRR, R@1, 5, 10 and the mean rank over all."""
        if any(question.record["gt_index"] is None for question in questions):
            return Score({}, notes=["answers of the test split are not public: upload the submission file to EvalAI"])
        details = [_detail(question, answers[question.id]) for question in questions]
        ranks = [detail["rank"] for detail in details]
        gains = [detail["NDCG"] for detail in details if "NDCG" in detail]
        metrics = {"NDCG": mean(gains)} if gains else {}
        metrics["MRR"] = mean(1 / rank for rank in ranks)
        metrics |= {f"R@{k}": mean(rank <= k for rank in ranks) for k in KS}
        metrics["mean_rank"] = mean(ranks)
        notes = [f"{len(ranks)} rounds; a tie counts against the model"]
        notes.append(f"NDCG over {len(gains)} rounds" if gains else "no NDCG: the dense annotations were not given")
        return Score(metrics, details, notes)

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """EvalAI's list of `image_id`, `round_id`, `ranks`."""
        entries = []
        for question in questions:
            answer = answers[question.id]
            ranks = answer["ranks"] if "scores" not in answer else ranks_as_permutation(answer["scores"])
            entries.append({name: question.record[name] for name in ("image_id", "round_id")} | {"ranks": ranks})
        path = folder / "visdial_submission.json"
        path.write_text(json.dumps(entries))
        return path

    def _rounds(self, dialog: "Dialog", dense: dict[tuple[int, int], Record]) -> list[Question]:
        questions = []
        for index in range(len(dialog.rounds)):
            options = dialog.options(index)
            if options is None:
                continue
            place = (dialog.image_id, index + 1)
            relevance = _relevance(dense.pop(place), len(options)) if place in dense else None
            questions.append(
                Question(
                    id=f"{dialog.image_id}/{index + 1}",
                    messages=self._messages(dialog, index),
                    images=(dialog.image,),
                    record={
                        "image_id": dialog.image_id,
                        "round_id": index + 1,
                        "options": options,
                        "gt_index": dialog.gt_index(index, len(options)),
                        "relevance": relevance,
                    },
                    where=dialog.record.where,
                )
            )
        return questions

    def _messages(self, dialog: "Dialog", index: int) -> list[dict[str, Any]]:
        lines = [f"{dialog.record.value['caption']}\n"] if self.settings["caption"] else []
        for earlier in range(index):
            lines.append(f"Q: {dialog.question(earlier)}?\nA: {dialog.answer(earlier)}\n")
        text = "".join([*lines, f"Q: {dialog.question(index)}?\nA: "])
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


@dataclass(frozen=True)
class Dialog:
    """One dialogue with the lists of all questions and answers that its numbers point into."""

    record: Record
    image_id: int
    image: str
    rounds: list[Any]
    questions: list[str]
    answers: list[str]

    def question(self, index: int) -> str:
        """The question of a round, without its question mark."""
        return self._text(index, "question", self.questions)

    def answer(self, index: int) -> str:
        """The person's answer in a round."""
        return self._text(index, "answer", self.answers)

    def options(self, index: int) -> list[str] | None:
        """The answers to choose from in a round; None where the round has none."""
        step = self.record.within("dialog", index)
        if "answer_options" not in step.value:
            return None
        numbers = step.get("answer_options", list)
        for place, number in enumerate(numbers):
            if not isinstance(number, int) or not 0 <= number < len(self.answers):
                raise step.error(f"answer_options[{place}]", f"expected a number below {len(self.answers)}")
        return [self.answers[number] for number in numbers]

    def gt_index(self, index: int, count: int) -> int | None:
        """The place of the right answer among the options, from 0; None in the test split."""
        step = self.record.within("dialog", index)
        if "gt_index" not in step.value:
            return None
        place = step.get("gt_index", int)
        if not 0 <= place < count:
            raise step.error("gt_index", f"expected a place from 0 to {count - 1}, found {place}")
        if "answer" in step.value and step.value["answer_options"][place] != step.value["answer"]:
            raise step.error("gt_index", "expected the place of `answer` among answer_options, found another's")
        return place

    def _text(self, index: int, field: str, texts: list[str]) -> str:
        step = self.record.within("dialog", index)
        number = step.get(field, int)
        if not 0 <= number < len(texts):
            raise step.error(field, f"expected a number below {len(texts)}, found {number}")
        return texts[number]


def read_dialogs(path: Path) -> list[Dialog]:
    """The dialogues of a Visual Dialog 1.0 file.

    Raises:
        ValueError: it is another file, or an image has two dialogues.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("data"), dict):
        list(list_records(path, document, "data", "Visual Dialog's dialogues"))
    whole = Record(path, document)
    data, split = whole.within("data"), whole.get("split", str)
    texts = [data.get(field, list) for field in ("questions", "answers")]
    dialogs: dict[int, Dialog] = {}
    for index in range(len(data.get("dialogs", list))):
        record = data.within("dialogs", index)
        number = record.get("image_id", int)
        if number in dialogs:
            raise record.error("image_id", f"expected one dialogue an image, found {number} again")
        record.get("caption", str)
        image = f"VisualDialog_{split}_{number:012d}.jpg"
        dialogs[number] = Dialog(record, number, image, record.get("dialog", list), *texts)
    return list(dialogs.values())


def _dense(path: Path) -> dict[tuple[int, int], Record]:
    """Dense annotations by image and round, which count from 1 as the rounds of EvalAI do."""
    found: dict[tuple[int, int], Record] = {}
    for record in list_records(path, read_json(path), None, "Visual Dialog's dense annotations"):
        place = (record.get("image_id", int), record.get("round_id", int))
        if place in found:
            raise record.error("round_id", f"expected each round once, found {place[1]} of image {place[0]} again")
        found[place] = record
    return found


def _relevance(record: Record, count: int) -> list[float]:
    # The training file calls it `relevance`.
    field = "gt_relevance" if "gt_relevance" in record.value else "relevance"
    values = record.get(field, list, length=count)
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise record.error(f"{field}[{index}]", f"expected a number, found {value!r}")
    if not any(values):
        raise record.error(field, "expected at least one relevant option, found none")
    return values


def _detail(question: Question, answer: Answer) -> dict[str, Any]:
    ranks = pessimistic_ranks(answer["scores"]) if "scores" in answer else answer["ranks"]
    record = question.record
    detail = {
        "question_id": question.id,
        "answer": record["options"][record["gt_index"]],
        "chosen": record["options"][min(range(len(ranks)), key=ranks.__getitem__)],
        "rank": ranks[record["gt_index"]],
    }
    if record["relevance"] is not None:
        detail["NDCG"] = ndcg(ranks, record["relevance"])
    return detail
