"""lmms-eval finds our model, runs our task with our score and a task of its own, all without a network.

The last two need lmms-eval: `make test-lmms-eval` makes an environment for it (or name one's Python in VWLMM_LMMS_PYTHON).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_runs import save_model

from vwlmm.benchmarks import get_benchmark
from vwlmm.cli import main
from vwlmm.integrations.lmms_eval.__main__ import main as write_tasks
from vwlmm.integrations.lmms_eval.questions import (
    aggregate,
    doc_to_messages,
    doc_to_text,
    doc_to_visual,
    process_results,
)

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("VWLMM_LMMS_PYTHON")
needs_lmms_eval = pytest.mark.skipif(not PYTHON, reason="needs an environment with lmms-eval: make test-lmms-eval")
LABELS = [("Is there a red circle in the image?", "yes"), ("Is there a green one in the image?", "no")]


@pytest.fixture
def pope(tmp_path):
    """POPE's three files about three pictures."""
    (tmp_path / "data" / "val2014").mkdir(parents=True)
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (30 + number, 40), colour).save(tmp_path / "data" / "val2014" / f"{colour}.jpg")
    for subset in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": n, "image": f"{colour}.jpg", "text": text, "label": label}
            for n, (colour, (text, label)) in enumerate(
                (colour, entry) for colour in ("red", "green", "blue") for entry in LABELS
            )
        ]
        file = tmp_path / "data" / f"coco_pope_{subset}.json"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "data"


@pytest.fixture
def documents(pope, tmp_path):
    """The lines of the task's file, as lmms-eval gives them to our functions."""
    assert write_tasks(["--benchmark", "pope", "--data", str(pope), "--out", str(tmp_path / "tasks")]) == 0
    return [json.loads(line) for line in (tmp_path / "tasks" / "vwlmm_pope.jsonl").open()]


def test_a_task_asks_in_our_words_and_shows_the_picture(pope, documents):
    benchmark = get_benchmark("pope")
    questions = benchmark.read(benchmark.files(pope))
    assert [document["question_id"] for document in documents] == [question.id for question in questions]
    for document, question in zip(documents, questions, strict=True):
        assert doc_to_text(document) == question.prompt
        (turn,) = doc_to_messages(document)
        picture, text = turn["content"]
        assert picture["url"].size == doc_to_visual(document)[0].size
        assert text == question.messages[0]["content"][1]


def test_a_task_is_scored_by_the_benchmark_itself(pope, documents, capsys):
    benchmark = get_benchmark("pope")
    questions = benchmark.read(benchmark.files(pope))
    texts = ["yes" if number % 3 else "No, there is not." for number in range(len(documents))]
    items = [process_results(d, [text])["vwlmm_score"] for d, text in zip(documents, texts, strict=True)]
    answers = {q.id: {"question_id": q.id, "text": text} for q, text in zip(questions, texts, strict=True)}
    wanted = benchmark.score(questions, answers)
    assert aggregate(items) == wanted.metrics["f1"] > 0
    assert json.dumps(dict(wanted.metrics)) in capsys.readouterr().out
    with pytest.raises(ValueError, match="answered twice"):
        aggregate([*items, items[0]])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--benchmark", "pope"], "say where they are with --data"),
        (["--benchmark", "pope", "--data", "none"], "coco_pope_random.json"),
        (["--benchmark", "coco_retrieval", "--data", "none"], "use vwlmm eval"),
        (["--benchmark", "pop"], "Did you mean 'pope'?"),
    ],
)
def test_what_cannot_be_a_task_is_one_line(tmp_path, capsys, arguments, said):
    assert write_tasks([*arguments, "--out", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def talkative(parts, tmp_path_factory):
    return save_model(parts, tmp_path_factory.mktemp("model"))


@pytest.fixture
def lmms_eval(tmp_path, talkative):
    """Runs lmms-eval offline on the tiny model; returns its results and its logged samples by task."""
    # What `pip install .` writes of setup.py, the entry points, without installing.
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)], cwd=ROOT, check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }

    def run(task, folder):
        command = [PYTHON, "-m", "lmms_eval", "--model", "vwlmm", "--batch_size", "4", "--log_samples"]
        command += ["--model_args", f"pretrained={talkative},dtype=float32", "--tasks", task]
        command += ["--include_path", str(folder), "--output_path", str(tmp_path / "lmms")]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        (results,) = (tmp_path / "lmms").rglob("*_results.json")
        (samples,) = (tmp_path / "lmms").rglob(f"*_samples_{task}.jsonl")
        return (
            json.loads(results.read_text())["results"][task],
            [json.loads(line) for line in samples.read_text().strip().split("\n")],
        )

    return run


@pytest.mark.slow
@needs_lmms_eval
def test_our_task_gets_the_answers_and_the_score_of_vwlmm_eval(lmms_eval, pope, documents, talkative, tmp_path):
    results, samples = lmms_eval("vwlmm_pope", tmp_path / "tasks")
    out = tmp_path / "ours"
    ask = ["--benchmark", "pope", "--data", str(pope), "--out", str(out), "--dtype", "float32"]
    assert main(["eval", str(talkative), *ask]) == 0
    ours = [json.loads(line)["text"] for line in (out / "pope" / "answers.jsonl").read_text().strip().split("\n")]
    theirs = {sample["doc_id"]: sample["filtered_resps"] for sample in samples}
    assert [theirs[number] for number in range(len(ours))] == ours
    assert len(set(ours)) > 1
    metrics = json.loads((out / "pope" / "result.json").read_text())["metrics"]
    assert results["vwlmm_score,none"] == pytest.approx(metrics["f1"])
    assert metrics["f1"] > 0


@pytest.mark.slow
@needs_lmms_eval
def test_a_built_in_task_runs_offline_on_local_data(lmms_eval, pope, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"question_id": str(n), "question": text, "answer": label, "image": str(pope / "val2014" / "red.jpg")}
        for n, (text, label) in enumerate(LABELS * 2)
    ]
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("question_id", "question", "answer")} | {"image": datasets.Image()}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "pope.parquet"))
    script = "import lmms_eval, os; print(os.path.dirname(lmms_eval.__file__))"
    found = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    (tmp_path / "built_in").mkdir()
    (tmp_path / "built_in" / "pope_local.yaml").write_text(
        f"include: {found}/tasks/pope/pope.yaml\ntask: pope_local\ndataset_path: parquet\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'pope.parquet'}}}}}\n"
    )
    results, samples = lmms_eval("pope_local", tmp_path / "built_in")
    assert len(samples) == len(rows)
    assert all(sample["filtered_resps"] for sample in samples)
    assert results["pope_accuracy,none"] == pytest.approx(
        sum(s["filtered_resps"].lower().strip() == r["answer"] for s, r in zip(samples, rows, strict=True)) / 4
    )
