"""Writes official files from the cases and runs `vwlmm score` on them."""

import json
from pathlib import Path

from vwlmm.cli import main

CASES = Path(__file__).parent / "cases"


def cases(name):
    return json.loads((CASES / f"{name}_cases.json").read_text())


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False))
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def answer_line(name, text, prompt="asked?"):
    """A line as LLaVA writes it."""
    return {"question_id": name, "prompt": prompt, "text": text, "answer_id": "x", "model_id": "m", "metadata": {}}


def run_score(folder, benchmark, annotations, answers, *more):
    """The result JSON of `vwlmm score`, which must succeed."""
    out = folder / "score.json"
    annotations = annotations if isinstance(annotations, list) else [annotations]
    arguments = ["score", benchmark, "--annotations", *annotations, "--answers", answers, "--out", out, *more]
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(out.read_text())


def refused(capsys, folder, benchmark, annotations, answers, *more):
    """The message of `vwlmm score`, which must fail in one line, print no figure and write no result."""
    out = folder / "score.json"
    annotations = annotations if isinstance(annotations, list) else [annotations]
    arguments = ["score", benchmark, "--annotations", *annotations, "--answers", answers, "--out", out, *more]
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert not out.exists()
    return printed.err


def details_by_id(result):
    return {detail["question_id"]: detail for detail in result["details"]}
