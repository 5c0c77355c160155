"""`vwlmm score BENCHMARK --annotations F… [--questions F…] --answers F.jsonl [--out F.json]`: scores finished answers.

No model is needed; every figure can be checked in the per-question details of `--out`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  vwlmm score vqav2 --annotations v2_mscoco_val2014_annotations.json --answers answers.jsonl
  vwlmm score coco_captions --annotations dataset_coco.json --answers answers.jsonl --option clip=CLIP --images coco
  vwlmm score flickr30k_retrieval --annotations dataset_flickr30k.json --answers answers.jsonl

Answers are JSON lines, one a question, or the benchmark's official result file:
  text             {"question_id": …, "text": "…"}
  retrieval        {"question_id": PICTURE, "scores": [similarity to every caption of the file, in order]}
                   or {…, "text_ranks": [of its captions], "image_ranks": [for its captions]}
  visdial          {"question_id": "IMAGE/ROUND", "scores": [a log-probability an option]}
                   or {"image_id": …, "round_id": from 1, "ranks": [a rank an option]}
  classification   {"question_id": PICTURE, "scores": [a number a class]}, or "label": class number, or "text": class name
  voc_segmentation {"question_id": PICTURE, "scores": {class: rows of patch scores}}, or "labels": [[label, count], …]
  arithmetic       {"question_id": …, "words": [nearest first], "text": "…"}
docs/score.md has every benchmark's files, options and figures."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("benchmark", help="name of the benchmark, as in vqav2, gqa, pope")
    parser.add_argument("--annotations", nargs="+", type=Path, default=[], metavar="F", help="official label files")
    parser.add_argument("--questions", nargs="+", type=Path, default=[], metavar="F", help="official question files")
    parser.add_argument(
        "--answers", nargs="+", type=Path, required=True, metavar="F", help="answers JSONL, or the official result file"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures, where scoring looks at it")
    parser.add_argument("--out", type=Path, metavar="F.json", help="write metrics and the details of every question")
    parser.add_argument("--submission", type=Path, metavar="FOLDER", help="write the official submission file there")
    parser.add_argument(
        "--option", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="a setting of the benchmark"
    )


def main(args: argparse.Namespace) -> int:
    """Reads everything before a figure is printed, so that half a file gives no figure."""
    from vwlmm import __version__
    from vwlmm.benchmarks import Files, get_benchmark
    from vwlmm.benchmarks.answers import read_answers

    benchmark = get_benchmark(args.benchmark, **_options(args.option))
    if not (args.annotations or args.questions or args.images):
        raise ValueError(f"{benchmark.name}: expected --annotations with the official file, found none.")
    questions = benchmark.read(Files(tuple(args.annotations), tuple(args.questions), args.images))
    answers = read_answers(args.answers, benchmark, questions)
    score = benchmark.score(questions, answers)
    if not score.metrics and args.submission is None:
        raise ValueError(f"{benchmark.name}: nothing to score: {'; '.join(score.notes)} (--submission FOLDER).")
    result = {
        "vwlmm": __version__,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "settings": benchmark.settings,
        "files": {
            name: [path.name for path in getattr(args, name)] for name in ("annotations", "questions", "answers")
        },
        "num_questions": len(questions),
        "metrics": dict(score.metrics),
        "published": dict(benchmark.published),
        "notes": list(score.notes),
        "details": list(score.details),
    }
    lines = [_report(result)]
    if args.submission is not None:
        args.submission.mkdir(parents=True, exist_ok=True)
        path = benchmark.write_submission(questions, answers, args.submission)
        lines.append(f"submission: {path}" if path else f"{benchmark.title} has no submission file")
    if args.out is not None:
        _write(result, args.out)
    print("\n".join(lines))
    return 0


def _options(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is read as YAML, so that true, 3 and null are what they seem."""
    import yaml

    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--option: expected key=value, found {pair!r}.")
        options[key] = yaml.safe_load(value)
    return options


def _write(result: dict[str, Any], path: Path) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _report(result: dict[str, Any]) -> str:
    width = max(map(len, result["metrics"]), default=0)
    lines = [f"{result['title']}: {result['num_questions']} questions"]
    for name, value in result["metrics"].items():
        lines.append(f"{name:{width}}  {value}" if isinstance(value, int) else f"{name:{width}}  {value:.6f}")
    lines += [f"note: {note}" for note in result["notes"]]
    if result["published"]:
        lines.append(
            "published, in percent: " + ", ".join(f"{name} {value}" for name, value in result["published"].items())
        )
    return "\n".join(lines)
