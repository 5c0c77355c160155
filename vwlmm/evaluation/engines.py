"""From questions to answers: each benchmark's engine with a wrapper of the model that it asks."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from vwlmm.benchmarks import Answer, Benchmark, Question
from vwlmm.benchmarks.engines import EmbedBenchmark, RankBenchmark
from vwlmm.evaluation.embedding import make_embedder
from vwlmm.evaluation.generation import Generator, Pictures
from vwlmm.evaluation.likelihood import LikelihoodRanker
from vwlmm.evaluation.settings import EvaluationConfig


def answer(
    loaded: Any,
    benchmark: Benchmark,
    questions: Sequence[Question],
    texts: Sequence[str],
    pictures: Pictures,
    config: EvaluationConfig,
    *,
    autocast: Any = None,
) -> Iterator[list[Answer]]:
    """Answers all questions, some at a time, each as soon as it is there.

    Args:
        loaded: a `runner.LoadedModel`.
        texts: the prompts, for the engine "generate".
        autocast: makes a context in which the model computes, e.g. that of a trainer.

    Raises:
        ValueError: the model cannot do what the benchmark needs.
    """
    model, processor = loaded.model, loaded.processor
    if isinstance(benchmark, EmbedBenchmark):
        embedder = make_embedder(model, processor, pictures, has_words=loaded.has_words)
        if not isinstance(embedder, benchmark.needs):
            raise ValueError(
                f"{benchmark.name} needs a model that is a {benchmark.needs.__name__} (vwlmm.benchmarks.engines), and "
                f"{type(model).__name__} is not one."
            )
        for line in _inside(autocast, benchmark.answer_all(questions, embedder, config.batch_size)):
            yield [{**line, "model_id": loaded.name}]
        return
    if isinstance(benchmark, RankBenchmark):
        ranker = LikelihoodRanker(
            model, processor, pictures, batch_size=config.batch_size, completion=benchmark.completion
        )
        for line in _inside(autocast, (benchmark.answer(question, ranker) for question in questions)):
            yield [{**line, "model_id": loaded.name}]
        return
    generator = Generator(
        model,
        processor,
        pictures,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens or benchmark.max_new_tokens,
        model_id=loaded.name,
        answer_prompt=benchmark.answer_prompt,
        autocast=autocast,
    )
    yield from generator.answers(questions, texts)


def check_model(model: Any, benchmark: Benchmark) -> None:
    """Refuses a dual encoder where text or likelihoods are asked for.

    Raises:
        ValueError: the model only embeds.
    """
    if not isinstance(benchmark, EmbedBenchmark) and hasattr(model, "encode_image"):
        raise ValueError(f"{benchmark.name} asks for text, and {type(model).__name__} only embeds pictures and texts.")


def all_at_once(benchmark: Benchmark) -> bool:
    """True for a benchmark that compares all questions with each other: no shards, no rest of an interrupted run."""
    return isinstance(benchmark, EmbedBenchmark) and not benchmark.independent


def _inside(context: Any, lines: Iterator[Answer]) -> Iterator[Answer]:
    """Each line made inside the context, which is left while the caller has it."""
    while True:
        with context() if context else nullcontext():
            line = next(lines, None)
        if line is None:
            return
        yield line
