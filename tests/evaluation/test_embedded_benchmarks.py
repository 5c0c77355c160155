"""easy-VQA in the official formats: what the real readers and scorers make of it, and a model asked about it."""

import json
from pathlib import Path

import pytest

from vwlmm.benchmarks import get_benchmark
from vwlmm.benchmarks.prompts import SHORT_ANSWER
from vwlmm.demo.easy_vqa import COLOURS, SHAPES
from vwlmm.evaluation.runner import LoadedModel, evaluate
from vwlmm.evaluation.settings import EvaluationConfig
from vwlmm.evaluation.shards import Shard

DEMO = Path("checkpoints/demo/4_visual_words")
NAMES = ("embedded_vqa", "embedded_pope", "embedded_captions", "embedded_retrieval")


@pytest.fixture
def read(easy_vqa):
    def read(name, **options):
        benchmark = get_benchmark(name, **options)
        return benchmark, benchmark.read(benchmark.files(easy_vqa))

    return read


def right_answer(name, question):
    record = question.record
    if name == "embedded_vqa":
        return record["multiple_choice_answer"]
    return record["label"] if name == "embedded_pope" else record["references"][0]


@pytest.mark.parametrize("name", NAMES[:3])
def test_right_answers_score_best_and_wrong_ones_worst(read, name):
    benchmark, questions = read(name)
    best = benchmark.score(questions, {q.id: {"text": right_answer(name, q)} for q in questions})
    worst = benchmark.score(questions, {q.id: {"text": "no idea"} for q in questions})
    main = next(iter(best.metrics))
    assert worst.metrics[main] == 0
    assert best.metrics[main] == pytest.approx(1) if name != "embedded_captions" else best.metrics[main] > 3


@pytest.mark.parametrize("name", NAMES[:2])
def test_questions_are_asked_bare_or_with_llavas_instruction(read, name):
    bare, instructed = read(name)[1], read(name, instruction=True)[1]
    assert all(SHORT_ANSWER not in question.prompt for question in bare)
    assert [q.prompt + "\n" + SHORT_ANSWER for q in bare] == [q.prompt for q in instructed]


def test_popes_things_are_half_there_and_the_adversarial_ones_nearly(read):
    _, questions = read("embedded_pope")
    for subset in ("random", "popular", "adversarial"):
        rows = [question.record for question in questions if question.record["category"] == subset]
        assert [row["label"] for row in rows] == ["yes", "no"] * (len(rows) // 2)
        for there, absent in zip(rows[::2], rows[1::2], strict=True):
            assert there["image"] == absent["image"]
            shared = set(there["text"].split()) & set(absent["text"].split()) & {*COLOURS, *SHAPES}
            assert there["text"] != absent["text"]
            assert len(shared) == 1 if subset == "adversarial" else len(shared) < 2


def test_the_files_are_the_same_each_time(easy_vqa, tmp_path):
    from vwlmm.demo.benchmark_files import write_benchmark_files

    get_benchmark("embedded_vqa").files(easy_vqa)
    write_benchmark_files(easy_vqa / "easy-vqa", tmp_path)
    for file in (easy_vqa / "easy-vqa-benchmarks").iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_asked_and_scored(loaded, easy_vqa, tmp_path, name):
    benchmark = get_benchmark(name)
    config = EvaluationConfig(batch_size=8, limit=10, max_new_tokens=3)
    result = evaluate(loaded, benchmark, benchmark.files(easy_vqa), tmp_path, config)
    assert result.num_questions == 10
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 10
    assert all(value >= 0 for value in result.metrics.values())


def test_retrieval_is_done_by_one_process_at_once(loaded, easy_vqa, tmp_path, monkeypatch):
    benchmark = get_benchmark("embedded_retrieval")
    run = lambda shard=None, **changes: evaluate(  # noqa: E731
        loaded, benchmark, benchmark.files(easy_vqa), tmp_path, EvaluationConfig(batch_size=8, **changes), shard
    )
    assert run(Shard(1, 2)) is None
    few = run(Shard(0, 2), limit=5)
    assert few.num_questions == 5
    whole = run()  # other pictures to be found among: all are embedded anew
    assert whole.num_questions == 24
    answers = (tmp_path / "answers.jsonl").read_text()
    monkeypatch.setattr(type(benchmark), "answer_all", None)  # a finished run embeds nothing
    assert run().metrics == whole.metrics
    assert (tmp_path / "answers.jsonl").read_text() == answers


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.skipif(not DEMO.exists(), reason="needs the demo model: make demo")
@pytest.mark.parametrize("name", NAMES[:3])
def test_the_demo_model_answers_the_same_in_batches_of_1_4_and_16(tmp_path, name):
    benchmark, loaded = get_benchmark(name), LoadedModel.load(DEMO, "float32")
    files = benchmark.files(benchmark.default_data)
    for batch_size in (1, 4, 16):
        config = EvaluationConfig(batch_size=batch_size, limit=80)
        evaluate(loaded, benchmark, files, tmp_path / str(batch_size), config)
    one, four, sixteen = ((tmp_path / size / "answers.jsonl").read_text() for size in ("1", "4", "16"))
    assert one == four == sixteen
    assert len({json.loads(line)["text"] for line in one.splitlines()}) > 1
