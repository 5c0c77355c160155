"""What a benchmark asks of a model: text for a prompt ("generate"), a likelihood per option ("rank"), embeddings ("embed").

`vwlmm eval` wraps the model in these; a benchmark of engine "rank" or "embed" turns what they return into answers.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from vwlmm.benchmarks.benchmark import Answer, Benchmark, Question

# A picture: its name below the images folder, or the bytes of the encoded file (as in `Question.images`).
Picture = str | bytes

# For benchmarks with `completion`: the parts as they stand behind the begin token, so that a base model goes on with them.
COMPLETION_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


@runtime_checkable
class Ranker(Protocol):
    """Scores given continuations of one prompt."""

    def rank(self, question: Question, options: Sequence[str]) -> list[float]:
        """Sum (not mean) of the log-probabilities of each option's own tokens behind the question's prompt."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Embeds pictures and texts in one space; similarity is the cosine."""

    def embed_images(self, images: Sequence[Picture]) -> Tensor:
        """`[images, dim]`, fp32, each of length 1."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`[texts, dim]`, fp32, each of length 1."""
        ...


@runtime_checkable
class PatchEmbedder(Embedder, Protocol):
    """Also embeds the patches of a picture in that space: for segmentation."""

    def embed_patches(self, image: Picture) -> Tensor:
        """`[rows, columns, dim]`, fp32, as the paper of the model compares them with texts (normalised or not)."""
        ...


@runtime_checkable
class Arithmetician(Protocol):
    """Adds and subtracts the visual embeddings of pictures and says what the result is."""

    def nearest_words(self, plus: Sequence[Picture], minus: Sequence[Picture], num_words: int) -> list[str]:
        """The words nearest to Σ plus − Σ minus, the nearest first."""
        ...

    def describe(self, plus: Sequence[Picture], minus: Sequence[Picture]) -> str:
        """What the language model writes for Σ plus − Σ minus."""
        ...


class RankBenchmark(Benchmark):
    """A benchmark whose answer is a likelihood for each of given options."""

    engine: ClassVar[str] = "rank"

    @abstractmethod
    def options_of(self, question: Question) -> Sequence[str]:
        """The continuations to be scored for this question, in the official order."""

    def answer(self, question: Question, ranker: Ranker) -> Answer:
        """The line of the answers file: `scores`, one summed log-probability an option."""
        return {"question_id": question.id, "scores": ranker.rank(question, self.options_of(question))}


class EmbedBenchmark(Benchmark):
    """A benchmark whose answers come from comparing embeddings.

    `independent` is True where an answer depends on its own question only: such a benchmark may be given a shard, or
    what is left of an interrupted run. Others (retrieval) compare all questions with each other and need them at once.
    `needs` is the protocol that the model's wrapper must fulfil.
    """

    engine: ClassVar[str] = "embed"
    independent: ClassVar[bool] = True
    needs: ClassVar[type] = Embedder

    @abstractmethod
    def answer_all(self, questions: Sequence[Question], embedder: object, batch_size: int) -> Iterator[Answer]:
        """One answer line a question, in order; pictures and texts are embedded `batch_size` at a time.

        Args:
            embedder: fulfils `needs`.
        """
