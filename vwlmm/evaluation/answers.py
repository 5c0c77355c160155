"""The answers of a run on disk: JSON lines, appended while it runs, so that an interrupted run goes on where it was.

One process writes `answers.jsonl`. Of several, each writes `answers.I-of-N.jsonl`, and the last joins them.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from vwlmm.benchmarks import Answer
from vwlmm.evaluation.shards import Shard

logger = logging.getLogger(__name__)

ANSWERS_FILE = "answers.jsonl"


class AnswerStore:
    """The answers of one benchmark in one folder.

    Args:
        folder: of this benchmark and model; made if it is not there.
        ids: every question of the benchmark in the official order, also those that a limit leaves out.
        shard: whose file `append` writes to.
    """

    def __init__(self, folder: Path, ids: Sequence[str], shard: Shard) -> None:
        self.folder, self.shard = folder, shard
        self.places = {question_id: place for place, question_id in enumerate(ids)}
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / (ANSWERS_FILE if shard.count == 1 else f"answers.{shard.label}.jsonl")
        self.handle: IO[bytes] | None = None

    def __enter__(self) -> "AnswerStore":
        """Opens this shard's file for appending, alone, without the half line that an interruption may have left.

        Raises:
            ValueError: another run writes to it at this moment.
        """
        import fcntl

        handle = self.file.open("a+b")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise ValueError(f"Another run is writing {self.file}: wait for it, or choose another --out.") from None
        handle.seek(0)
        whole = _end_of_last_line(handle.read())
        handle.truncate(whole)
        self.handle = handle
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.close()
            self.handle = None

    def append(self, answers: Iterable[Answer]) -> None:
        """Adds answers and hands them to the operating system before it returns."""
        assert self.handle is not None
        self.handle.write(b"".join(_line(answer) for answer in answers))
        self.handle.flush()

    def clear(self) -> None:
        """Forgets all answers given so far."""
        assert self.handle is not None
        self.handle.truncate(0)
        for file in (self.folder / ANSWERS_FILE, *self.folder.glob("answers.*-of-*.jsonl")):
            if file != self.file:
                file.unlink(missing_ok=True)

    def read(self) -> dict[str, dict[str, Any]]:
        """All answers given so far, of every shard, by question id.

        Raises:
            ValueError: a line that is no answer, an id that the benchmark does not have, a question answered twice.
        """
        answers: dict[str, dict[str, Any]] = {}
        found: dict[str, str] = {}
        # Parts first: whoever joins them writes the whole file before it removes a part, so nothing is missed.
        for file in [*sorted(self.folder.glob("answers.*-of-*.jsonl")), self.folder / ANSWERS_FILE]:
            for place, answer in read_lines(file, self.places):
                question_id = answer["question_id"]
                if question_id in answers and not (
                    answers[question_id] == answer and file.name not in found[question_id]
                ):
                    raise ValueError(
                        f"{place}: question {question_id!r} is answered here and in {found[question_id]}: "
                        "every question has one answer. Delete one of the two lines."
                    )
                answers[question_id] = answer
                found.setdefault(question_id, place)
        return answers

    def join(self, answers: Mapping[str, Answer]) -> Path:
        """Writes all answers in the official order into one file and removes the shards' files."""
        target = self.folder / ANSWERS_FILE
        unfinished = self.folder / f".answers.{os.getpid()}.jsonl"
        with unfinished.open("wb") as file:
            file.writelines(_line(answers[question_id]) for question_id in sorted(answers, key=self.places.__getitem__))
        os.replace(unfinished, target)
        for part in self.folder.glob("answers.*-of-*.jsonl"):
            part.unlink(missing_ok=True)
        return target


def read_lines(file: Path, known: Mapping[str, int]) -> list[tuple[str, dict[str, Any]]]:
    """The answers of one file with their places (`answers.jsonl line 3`); none when there is no such file.

    A last line without its line break is what an interruption leaves of an answer: it is not read.

    Raises:
        ValueError: a line is not a JSON object with a `question_id` of the benchmark.
    """
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = _end_of_last_line(content)
    if whole < len(content):
        logger.info("%s ends in half an answer, as an interruption leaves it: the question is asked again.", file)
    answers = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        place = f"{file} line {number}"
        try:
            answer = json.loads(line)
        except ValueError as problem:
            raise ValueError(f"{place}: expected one JSON object, found something else: {problem}.") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("question_id"), str):
            raise ValueError(f"{place}: expected a JSON object with the text `question_id`, found {line[:80]!r}.")
        if answer["question_id"] not in known:
            raise ValueError(
                f"{place}: question_id {answer['question_id']!r} is not a question of this benchmark: "
                "the answers belong to other data."
            )
        answers.append((place, answer))
    return answers


def _end_of_last_line(content: bytes) -> int:
    return content.rfind(b"\n") + 1


def _line(answer: Answer) -> bytes:
    return (json.dumps(dict(answer), ensure_ascii=False) + "\n").encode()
