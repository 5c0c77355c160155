"""What a benchmark is: official files → questions → answers → score and submission. One file a benchmark beside this one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Files:
    """The official files of one benchmark.

    `annotations` hold the labels, `questions` what is asked where a set publishes it apart from its labels, `images` is
    the folder that the pictures' names are relative to (None when only a finished answers file is scored).
    """

    annotations: tuple[Path, ...] = ()
    questions: tuple[Path, ...] = ()
    images: Path | None = None


@dataclass(frozen=True)
class Question:
    """One question as the model is asked it.

    `id` is unique in its benchmark and is `question_id` in the answers file. `messages` are chat messages in Hugging
    Face's form, `{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": …}]}`; the pictures of their
    image parts, in order, are `images`: names below the images folder, or the bytes of an encoded picture where the
    official file holds it itself. `messages` is empty when the files given do not say how to ask (labels without
    questions): such a question can be scored, not asked. `record` is the official record with whatever scoring needs,
    `where` its place in the official file, for messages.
    """

    id: str
    messages: Sequence[Mapping[str, Any]]
    images: tuple[str | bytes, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def prompt(self) -> str:
        """The text of all messages, without pictures and the newline after the first: `prompt` of the answers file."""
        parts = (part for message in self.messages for part in message["content"])
        return "".join(part["text"] for part in parts if part["type"] == "text").removeprefix("\n")


@dataclass(frozen=True)
class Score:
    """Figures of one run: `metrics` by name, the benchmark's main one first, as fractions unless the name says otherwise.

    `details` has one row a question (`question_id`, what was read from the answer, what it earned), so that anyone can
    check a figure; `notes` say which variant of a rule was used where there are several.
    """

    metrics: Mapping[str, float]
    details: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


# One line of an answers file: `question_id` and `text`, or what an engine other than `generate` writes (`ranks`, …).
Answer = Mapping[str, Any]


class Benchmark(ABC):
    """Reads one benchmark's official files, asks as its paper does, scores by its official rule.

    `options` are settings that change prompt or score, with their defaults; every one is written into the result.
    `engine` says how answers come to be: "generate" asks the model for text; "rank" scores given answers by likelihood;
    "embed" compares embeddings of pictures and texts.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    engine: ClassVar[str] = "generate"
    # True where the prompt is text to go on with, not a chat turn; asked through `engines.COMPLETION_TEMPLATE`.
    completion: bool = False
    max_new_tokens: ClassVar[int] = 128
    options: ClassVar[Mapping[str, Any]] = {}
    # Where a published answers file keeps the question's id and the answer: the first of these that a line has.
    id_fields: ClassVar[tuple[str, ...]] = ("question_id",)
    answer_fields: ClassVar[tuple[str, ...]] = ("text", "answer", "prediction")
    # What the first of `answer_fields` holds: text, or for "rank" and "embed" a list of numbers.
    answer_kind: ClassVar[type] = str
    # Model name → main metric as its paper prints it, for the table beside ours.
    published: ClassVar[Mapping[str, float]] = {}
    # Where the files are when the user names no folder; None for sets that the user fetches.
    default_data: ClassVar[Path | None] = None

    def __init__(self, **options: Any) -> None:
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"{self.name}: no option {unknown[0]!r}; it has: {known}")
        self.settings = {**self.options, **options}

    @abstractmethod
    def files(self, data: Path) -> Files:
        """The official files by their official names below `data`; FileNotFoundError lists what is missing."""

    @abstractmethod
    def read(self, files: Files) -> list[Question]:
        """All questions in the official order; ValueError names file, field and line of what is wrong."""

    def answer_prompt(self, question: Question) -> str:
        """`prompt` of the question's line in the answers file."""
        return question.prompt

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """A function from a line of an answers file to the id of its question, None where there is no such question.

        The line has been given its `question_id`, as text, from the first of `id_fields` that it has. It may be called
        once a line, in the file's order; a ValueError that it raises begins with `field NAME: ` and gets file and line.
        """
        ids = {question.id for question in questions}
        return lambda answer: answer["question_id"] if answer.get("question_id") in ids else None

    def may_be_missing(self, question: Question) -> bool:
        """True when the official rule scores a finished run in which this question has no answer."""
        return False

    @abstractmethod
    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Scores answers keyed by question id. The caller has checked that each question has exactly one answer.

        Without labels (test splits) there are no metrics, and a note says where the submission is scored.
        """

    def write_submission(
        self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path
    ) -> Path | None:
        """Writes the official submission file into `folder` and returns it; None when the benchmark has no such file."""
        return None
