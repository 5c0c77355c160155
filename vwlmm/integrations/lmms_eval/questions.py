"""Our benchmarks as tasks of lmms-eval: a file of questions, a YAML, and the functions that the YAML names.

lmms-eval loads one JSONL file, asks each line's messages and hands all answers back at the end, where the benchmark's own
scorer scores them. The official files are read and checked when the task is written: what fails inside lmms-eval ends
there as an error without words.
"""

import base64
import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from vwlmm.benchmarks import Answer, Benchmark, Files, Question, get_benchmark
from vwlmm.benchmarks.official_files import check_images
from vwlmm.data.images import load_image

METRIC = "vwlmm_score"
BASE = Path(__file__).parent / "tasks" / "_vwlmm.yaml"


def write_task(benchmark: Benchmark, data: Path | None, out: Path, limit: int | None = None) -> str:
    """Writes `NAME.yaml` and `NAME.jsonl` and returns the task's name.

    Raises:
        ValueError: the benchmark does not ask for text, or has no labels to score with.
        FileNotFoundError: official files or pictures are missing.
    """
    from vwlmm.evaluation.runner import run_name, sample

    if benchmark.engine != "generate":
        raise ValueError(
            f"{benchmark.name} does not ask for text, and lmms-eval (0.7.3) loses what its other requests return: "
            "use vwlmm eval."
        )
    folder = data or benchmark.default_data
    if folder is None:
        raise ValueError(f"{benchmark.name} reads official files: say where they are with --data DIR.")
    files = benchmark.files(Path(folder))
    questions = benchmark.read(files)
    chosen = [questions[place] for place in sample(len(questions), limit)]
    check_images(chosen, files.images)
    blank = {q.id: {"question_id": q.id, "text": "", "prompt": benchmark.answer_prompt(q)} for q in chosen}
    if not benchmark.score(chosen, blank).metrics:
        raise ValueError(
            f"{benchmark.name}: these files hold no labels to score with; use vwlmm eval, which writes the submission."
        )
    name = f"vwlmm_{run_name(benchmark)}".replace("=", "_")
    source = json.dumps(
        {
            "benchmark": benchmark.name,
            "options": dict(benchmark.settings),
            "annotations": [str(path.resolve()) for path in files.annotations],
            "questions": [str(path.resolve()) for path in files.questions],
            "images": str(files.images.resolve()) if files.images else None,
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(_document(question, files.images, source), ensure_ascii=False) + "\n" for question in chosen)
    with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(lines)
    generation = {
        "max_new_tokens": benchmark.max_new_tokens,
        "do_sample": False,
        "temperature": 0,
        "num_beams": 1,
        "until": [],
    }
    if benchmark.completion:
        generation["vwlmm_completion"] = True
    task = {
        "include": str(BASE),
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((out / f"{name}.jsonl").resolve())}},
        "generation_kwargs": generation,
    }
    (out / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return name


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a line, decoded."""
    return [load_image(_source_of(image)) for image in json.loads(doc["images"])]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The prompt without pictures, for models that take them apart from the text."""
    return Question("", json.loads(doc["messages"])).prompt


def doc_to_messages(
    doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The messages as our runner asks them, each picture in its place."""
    pictures = iter(doc_to_visual(doc))
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "url": next(pictures)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in json.loads(doc["messages"])
    ]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Keeps the answer; scoring needs all of them."""
    return {METRIC: {"question_id": doc["question_id"], "text": results[0], "source": doc["source"]}}


def aggregate(items: list[dict[str, Any]]) -> float:
    """The benchmark's main metric over all answers, by its own scorer.

    Raises:
        ValueError: a question has two answers.
    """
    benchmark, questions = _benchmark(items[0]["source"])
    answers: dict[str, Answer] = {}
    for item in items:
        if item["question_id"] in answers:
            raise ValueError(f"{benchmark.name}: question {item['question_id']!r} was answered twice.")
        answers[item["question_id"]] = item
    asked = [question for question in questions if question.id in answers]
    prompted = {q.id: {**answers[q.id], "prompt": benchmark.answer_prompt(q)} for q in asked}
    metrics = benchmark.score(asked, prompted).metrics
    print(f"vwlmm: {benchmark.name}: {json.dumps(dict(metrics))}")
    return next(iter(metrics.values()))


@lru_cache(maxsize=4)
def _benchmark(source: str) -> tuple[Benchmark, list[Question]]:
    given = json.loads(source)
    benchmark = get_benchmark(given["benchmark"], **given["options"])
    paths = {name: tuple(Path(path) for path in given[name]) for name in ("annotations", "questions")}
    images = Path(given["images"]) if given["images"] else None
    return benchmark, benchmark.read(Files(paths["annotations"], paths["questions"], images))


def _document(question: Question, images: Path | None, source: str) -> dict[str, str]:
    """One line; every field is text, so that the JSON reader of `datasets` sees the same columns in all lines."""
    pictures = [
        {"base64": base64.b64encode(image).decode()}
        if isinstance(image, bytes)
        else {"path": str((images or Path()) / image)}
        for image in question.images
    ]
    return {
        "question_id": question.id,
        "messages": json.dumps(list(question.messages)),
        "images": json.dumps([{**p, "path": str(Path(p["path"]).resolve())} if "path" in p else p for p in pictures]),
        "source": source,
    }


def _source_of(image: dict[str, str]) -> Path | bytes:
    if "path" in image:
        return Path(image["path"])
    return io.BytesIO(base64.b64decode(image["base64"])).getvalue()
