"""One benchmark, one model: read, ask, keep every answer at once, score, write result and submission.

evaluate(LoadedModel.load("checkpoints/demo/4_visual_words"), benchmark, files, Path("out"), EvaluationConfig(batch_size=16))
"""

import json
import logging
import random
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vwlmm.benchmarks import Benchmark, Files, Question
from vwlmm.benchmarks.official_files import check_images
from vwlmm.evaluation.answers import AnswerStore
from vwlmm.evaluation.engines import all_at_once, answer, check_model
from vwlmm.evaluation.generation import Pictures
from vwlmm.evaluation.prompts import prompt_hash, render, template_of
from vwlmm.evaluation.report import Result, write_result
from vwlmm.evaluation.settings import EvaluationConfig, check_settings, data_settings, model_settings, versions
from vwlmm.evaluation.shards import Shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be asked, and what its answers depend on."""

    model: Any
    processor: Any
    name: str  # in the answers file and the table
    settings: dict[str, Any]
    has_words: bool = True  # a trained VM head names its patches

    @classmethod
    def load(cls, source: str | Path, dtype: str = "auto", device: str | None = None) -> "LoadedModel":
        """Loads a folder or hub id: a LLaVA with or without a VM head, or a dual encoder, which embeds only."""
        from vwlmm.embedded import resolve
        from vwlmm.loading import has_vm_head, load_model

        source = resolve(source)
        if _model_type(str(source)) == "dual_encoder":
            model, processor = _load_pair(str(source), dtype, device)
            return cls(model, processor, Path(source).name, model_settings(source, model), has_words=False)
        model, processor = load_model(source, dtype=dtype, device=device, require_vm_head=False)
        return cls(model.eval(), processor, Path(source).name, model_settings(source, model), has_vm_head(source))


def _model_type(source: str) -> str | None:
    from transformers.utils import cached_file

    file = (
        cached_file(source, "config.json", _raise_exceptions_for_missing_entries=False) if _may_exist(source) else None
    )
    return json.loads(Path(file).read_text(encoding="utf-8")).get("model_type") if file else None


def _may_exist(source: str) -> bool:
    """False for what looks like a folder and is none: `load_model` says so in words."""
    return Path(source).is_dir() or not (source.startswith((".", "/", "~")) or source.count("/") != 1)


def _load_pair(source: str, dtype: str, device: str | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoProcessor

    import vwlmm.models  # noqa: F401 — registers the class with AutoModel
    from vwlmm.weights.check import refuse_damage

    refuse_damage(source)
    model = AutoModel.from_pretrained(source, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(place).eval(), AutoProcessor.from_pretrained(source)


@dataclass(frozen=True)
class Asked:
    """The questions of one run: all of the benchmark, those that the limit leaves, and the prompts of all."""

    all: list[Question]
    chosen: list[int]  # places in `all`, ascending
    texts: list[str]  # of all

    @property
    def questions(self) -> list[Question]:
        return [self.all[place] for place in self.chosen]


def evaluate(
    loaded: LoadedModel,
    benchmark: Benchmark,
    files: Files,
    folder: Path,
    config: EvaluationConfig,
    shard: Shard | None = None,
) -> Result | None:
    """Asks what is not answered yet, and scores when every question is.

    Args:
        folder: of this benchmark's run; answers that are there with the same settings are kept.
        shard: the share of this process; the score is made by whoever finds all answers there.

    Returns:
        The result; None for a process that leaves the scoring to another, or to a later one.

    Raises:
        ValueError: the files are not the benchmark's, the folder holds answers made otherwise, an answer is there twice.
        FileNotFoundError: a picture is missing.
    """
    shard = shard or Shard()
    check_model(loaded.model, benchmark)
    if all_at_once(benchmark) and shard.rank:
        # One process compares everything with everything; the others have nothing to do.
        shard.wait()
        shard.wait()
        return None
    asked = read_questions(benchmark, files, loaded.processor, config.limit)
    settings = run_settings(loaded, benchmark, files, asked, config)
    check_settings(folder, settings)
    with closing(Pictures(files.images, config.num_loaders)) as pictures:
        check_images(asked.questions, files.images)
        alone = Shard(connected=shard.connected) if all_at_once(benchmark) else shard
        store = AnswerStore(folder, [question.id for question in asked.all], alone)
        with store:
            _ask(loaded, benchmark, asked, pictures, store, config)
    shard.wait()
    if shard.connected and shard.rank:
        shard.wait()  # until the first process has written the result
        return None
    result = _score(loaded, benchmark, asked, store, settings)
    shard.wait()
    return result


def read_questions(benchmark: Benchmark, files: Files, processor: Any, limit: int | None) -> Asked:
    """Reads the official files and writes every prompt.

    Raises:
        ValueError: there are no questions, an id comes twice, the template refuses a question.
    """
    questions = benchmark.read(files)
    untold = next((question for question in questions if not question.messages and benchmark.engine != "embed"), None)
    if untold is not None:
        raise ValueError(
            f"{benchmark.name}: the files do not say how to ask question {untold.id!r} ({untold.where}): its text or picture "
            "is missing."
        )
    if not questions:
        raise ValueError(f"{benchmark.name}: {', '.join(map(str, files.annotations))} holds no questions.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(
                f"{benchmark.name}: question {question.id!r} is there twice, so answers could not be told apart."
            )
        seen.add(question.id)
    texts = []
    if benchmark.engine == "generate":
        template = template_of(processor, benchmark.completion)
        texts = [render(question, processor, template) for question in questions]
    return Asked(questions, sample(len(questions), limit), texts)


def sample(total: int, limit: int | None) -> list[int]:
    """`limit` of `total` places, ascending; drawn once and for all, and a smaller limit's are among a larger one's.

    Not the first ones, nor every n-th: official files are sorted by kind or picture, or alternate between yes and no.
    """
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(0).sample(range(total), total)[:limit])


def run_settings(
    loaded: LoadedModel, benchmark: Benchmark, files: Files, asked: Asked, config: EvaluationConfig
) -> dict[str, Any]:
    """Everything an answer depends on; a limit and the number of shards change how many are asked, not the answers."""
    settings: dict[str, Any] = {
        "benchmark": benchmark.name,
        "options": dict(benchmark.settings),
        **loaded.settings,
        "batch_size": config.batch_size,
        "data": data_settings(files),
        "versions": versions(),
    }
    if benchmark.engine == "generate":
        settings["decoding"] = "greedy"
        settings["max_new_tokens"] = config.max_new_tokens or benchmark.max_new_tokens
        settings["prompt_hash"] = prompt_hash(asked.all, asked.texts)
    return settings


def _ask(
    loaded: LoadedModel,
    benchmark: Benchmark,
    asked: Asked,
    pictures: Pictures,
    store: AnswerStore,
    config: EvaluationConfig,
) -> None:
    """Answers this shard's open questions and keeps each batch of answers as soon as it is there."""
    done = store.read()
    if all_at_once(benchmark):
        wanted = {asked.all[place].id for place in asked.chosen}
        if done.keys() == wanted:
            return
        # Answers of a part, or with another limit, compare other questions with each other.
        store.clear()
        done = {}
    open_places = [
        place
        for number, place in enumerate(asked.chosen)
        if store.shard.owns(number) and asked.all[place].id not in done
    ]
    mine = sum(store.shard.owns(number) for number in range(len(asked.chosen)))
    if len(open_places) < mine:
        logger.warning("%s: %d of %d answers are there, going on.", benchmark.name, mine - len(open_places), mine)
    with tqdm(
        total=mine, initial=mine - len(open_places), desc=benchmark.name, unit="question", disable=store.shard.rank > 0
    ) as progress:
        questions = [asked.all[place] for place in open_places]
        texts = [asked.texts[place] for place in open_places] if asked.texts else []
        for answers in answer(loaded, benchmark, questions, texts, pictures, config):
            store.append(answers)
            progress.update(len(answers))


def _score(
    loaded: LoadedModel, benchmark: Benchmark, asked: Asked, store: AnswerStore, settings: dict[str, Any]
) -> Result | None:
    answers = store.read()
    questions = asked.questions
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        logger.warning(
            "%s: %d of %d questions are answered, first without an answer: %r. Run the other shards; the last one scores.",
            benchmark.name,
            len(questions) - len(missing),
            len(questions),
            missing[0],
        )
        return None
    store.join(answers)
    own = {question.id: answers[question.id] for question in questions}
    score = benchmark.score(questions, own)
    score = replace(score, notes=[*score.notes, *_notes(asked, own)])
    result = Result(
        benchmark=store.folder.name,
        title=_title(benchmark),
        model=loaded.name,
        metrics=dict(score.metrics),
        notes=list(score.notes),
        num_questions=len(questions),
        num_total=len(asked.all),
        settings=settings,
        published=dict(benchmark.published),
    )
    write_result(store.folder, result, score)
    if len(questions) == len(asked.all):
        submission = benchmark.write_submission(questions, own, store.folder)
        if submission is not None:
            result = replace(result, submission=submission.name)
            write_result(store.folder, result, score)
    return result


def _notes(asked: Asked, answers: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader of the figure has to know that the benchmark cannot."""
    notes = []
    if len(asked.chosen) < len(asked.all):
        notes.append(
            f"{len(asked.chosen)} of {len(asked.all)} questions, drawn from the whole file: not the official figure, and no "
            "submission file."
        )
    cut = sum(bool(answer.get("metadata", {}).get("cut")) for answer in answers.values())
    if cut:
        notes.append(f"{cut} of {len(answers)} answers did not end within the allowed tokens and were cut.")
    return notes


def _title(benchmark: Benchmark) -> str:
    changed = {name: value for name, value in benchmark.settings.items() if value != benchmark.options[name]}
    return benchmark.title + (f" ({', '.join(f'{n}={v}' for n, v in changed.items())})" if changed else "")


def run_name(benchmark: Benchmark) -> str:
    """Folder of a benchmark's run: its name and the options that are not the default ones."""
    changed = [f"{name}={value}" for name, value in benchmark.settings.items() if value != benchmark.options[name]]
    return "-".join([benchmark.name, *changed]).replace("/", "_")
