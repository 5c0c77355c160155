"""Runs of a small benchmark: batch sizes, shards, interruptions, and what may not be mixed."""

import json
from dataclasses import replace

import pytest
from toy import Toy, write_toy

from vwlmm.evaluation.answers import AnswerStore
from vwlmm.evaluation.generation import Generator
from vwlmm.evaluation.report import read_result
from vwlmm.evaluation.runner import evaluate, run_name, sample
from vwlmm.evaluation.settings import EvaluationConfig
from vwlmm.evaluation.shards import Shard


@pytest.fixture
def run(loaded, toy, toy_data):
    def run(folder, shard=None, benchmark=toy, data=toy_data, model=loaded, **changes):
        return evaluate(model, benchmark, benchmark.files(data), folder, EvaluationConfig(**changes), shard)

    return run


def answers(folder):
    return (folder / "answers.jsonl").read_text()


def stop_after(monkeypatch, batches):
    """Ends the run with Ctrl-C before the given batch."""
    generate, made = Generator._generate, []

    def stopping(self, questions, inputs):
        if len(made) == batches:
            raise KeyboardInterrupt
        made.append(questions)
        return generate(self, questions, inputs)

    monkeypatch.setattr(Generator, "_generate", stopping)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_every_batch_size_gives_the_same_answers(run, tmp_path, batch_size):
    run(tmp_path / "one")
    run(tmp_path / "many", batch_size=batch_size)
    assert answers(tmp_path / "one") == answers(tmp_path / "many")
    texts = {json.loads(line)["text"] for line in answers(tmp_path / "one").splitlines()}
    assert len(texts) > 3  # the model does look and read


def test_answers_stand_in_the_official_order_with_llavas_fields(run, tmp_path):
    run(tmp_path, batch_size=4)
    rows = [json.loads(line) for line in answers(tmp_path).splitlines()]
    assert [row["question_id"] for row in rows] == [str(number) for number in range(11)]
    assert set(rows[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert "What colour is this?" in rows[0]["prompt"]
    assert "<image>" not in rows[0]["prompt"]


@pytest.mark.parametrize("count", [2, 3])
def test_shards_together_are_one_run_and_the_last_one_scores(run, tmp_path, count):
    whole = run(tmp_path / "whole")
    results = [run(tmp_path / "parts", Shard(rank, count)) for rank in range(count)]
    assert results[:-1] == [None] * (count - 1)
    assert results[-1].metrics == whole.metrics
    assert answers(tmp_path / "parts") == answers(tmp_path / "whole")
    assert not list((tmp_path / "parts").glob("answers.*-of-*"))
    assert (tmp_path / "parts" / "submission.json").read_text() == (tmp_path / "whole" / "submission.json").read_text()


def test_an_interrupted_run_goes_on_and_ends_as_a_whole_one(run, tmp_path, monkeypatch):
    run(tmp_path / "whole", batch_size=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", batch_size=2)
    assert len(answers(tmp_path / "cut").splitlines()) == 6
    with monkeypatch.context() as patch:
        stop_after(patch, 3)  # the other five questions are three batches: those answered are not asked again
        run(tmp_path / "cut", batch_size=2)
    assert answers(tmp_path / "cut") == answers(tmp_path / "whole")


def test_a_run_interrupted_in_two_shards_goes_on_in_one(run, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    run(tmp_path / "cut", Shard(1, 2))
    assert run(tmp_path / "cut") is not None
    assert answers(tmp_path / "cut") == answers(tmp_path / "whole")


def test_half_a_line_at_the_end_is_asked_again(run, tmp_path):
    run(tmp_path)
    whole = answers(tmp_path)
    (tmp_path / "answers.jsonl").write_text(whole[:-20])
    run(tmp_path)
    assert answers(tmp_path) == whole


def test_a_finished_run_only_scores_again(run, tmp_path, monkeypatch):
    first = run(tmp_path)
    stop_after(monkeypatch, 0)
    assert run(tmp_path).metrics == first.metrics


def test_a_second_answer_to_a_question_is_an_error(run, tmp_path):
    run(tmp_path)
    lines = answers(tmp_path).splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join([*lines, lines[3]]))
    with pytest.raises(ValueError, match=r"answers.jsonl line 12: question '3' is answered here and in .* line 4"):
        run(tmp_path)


def test_an_answer_to_an_unknown_question_is_an_error(run, tmp_path):
    run(tmp_path)
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"question_id": "77", "text": "red"}\n')
    with pytest.raises(ValueError, match=r"line 12: question_id '77' is not a question of this benchmark"):
        run(tmp_path)


def test_a_broken_line_in_the_middle_is_an_error(run, tmp_path):
    run(tmp_path)
    lines = answers(tmp_path).splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join([lines[0], lines[1][:30] + "\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"answers.jsonl line 2: expected one JSON object"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 2}, "batch_size: 1 there, 2 here"),
        ({"max_new_tokens": 3}, "max_new_tokens: 6 there, 3 here"),
        ({"benchmark": Toy(polite=True)}, "options:"),
    ],
)
def test_other_settings_do_not_continue_a_run(run, tmp_path, changes, said):
    run(tmp_path)
    with pytest.raises(ValueError, match="other settings") as problem:
        run(tmp_path, **changes)
    assert said in str(problem.value)


def test_another_model_or_other_data_do_not_continue_a_run(run, loaded, tmp_path):
    run(tmp_path / "out")
    other = replace(loaded, settings={**loaded.settings, "model_hash": "another"})
    with pytest.raises(ValueError, match="model_hash"):
        run(tmp_path / "out", model=other)
    with pytest.raises(ValueError, match=r"data: .*toy.json.*prompt_hash"):
        run(tmp_path / "out", data=write_toy(tmp_path / "data", 10))


def test_the_same_weights_in_another_place_continue_a_run(run, loaded, tmp_path):
    run(tmp_path)
    run(tmp_path, model=replace(loaded, settings={**loaded.settings, "model": "elsewhere"}))


def test_a_limit_asks_questions_from_the_whole_file_and_says_so(run, tmp_path):
    result = run(tmp_path, limit=3)
    asked = [str(place) for place in sample(11, 3)]
    assert [json.loads(line)["question_id"] for line in answers(tmp_path).splitlines()] == asked
    assert (result.num_questions, result.num_total) == (3, 11)
    assert "3 of 11 questions" in result.notes[0]
    assert result.submission is None


def test_a_limited_run_is_completed_without_asking_again(run, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    run(tmp_path / "some", limit=4)
    stop_after(monkeypatch, 7)
    run(tmp_path / "some")
    assert answers(tmp_path / "some") == answers(tmp_path / "whole")
    limited = run(tmp_path / "some", limit=4)
    assert limited.num_questions == 4
    assert answers(tmp_path / "some") == answers(tmp_path / "whole")


def test_the_result_says_how_it_came_to_be(run, tmp_path):
    result = run(tmp_path, batch_size=4)
    assert read_result(tmp_path) == result
    for name in ("dtype", "batch_size", "prompt_hash", "model_hash", "decoding", "max_new_tokens", "data", "versions"):
        assert result.settings[name]
    assert {"torch", "transformers", "vwlmm"} <= set(result.settings["versions"])
    details = [json.loads(line) for line in (tmp_path / "details.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in details] == [str(number) for number in range(11)]


def test_answers_that_do_not_end_are_counted(run, tmp_path):
    result = run(tmp_path, max_new_tokens=1)
    assert "did not end" in result.notes[-1]


def test_a_missing_picture_is_found_before_anything_is_asked(run, toy, tmp_path):
    data = write_toy(tmp_path / "data")
    (data / "images" / "black.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"black\.png"):
        run(tmp_path / "out", data=data)
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_a_broken_picture_names_the_question(run, toy, tmp_path):
    data = write_toy(tmp_path / "data")
    (data / "images" / "black.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"Question '\d+': .*broken PNG"):
        run(tmp_path / "out", data=data)
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_question_that_is_there_twice_is_an_error(run, tmp_path):
    data = write_toy(tmp_path / "data")
    rows = json.loads((data / "toy.json").read_text())
    (data / "toy.json").write_text(json.dumps([*rows, rows[2]]))
    with pytest.raises(ValueError, match="question '2' is there twice"):
        run(tmp_path / "out", data=data)


def test_two_runs_do_not_write_one_file(tmp_path):
    with (
        AnswerStore(tmp_path, ["a"], Shard()),
        pytest.raises(ValueError, match="Another run is writing"),
        AnswerStore(tmp_path, ["a"], Shard()),
    ):
        raise AssertionError("the second run was let in")


def test_a_limit_draws_from_the_whole_file_and_a_larger_one_adds_to_it():
    assert sample(10, None) == sample(10, 12) == list(range(10))
    few, more = sample(1000, 50), sample(1000, 100)
    assert len(few) == 50
    assert few == sorted(few)
    assert set(few) < set(more)
    assert max(few) > 900
    assert 10 < sum(place % 2 for place in few) < 40  # yes and no alternate in POPE's files


def test_a_runs_folder_names_the_options_that_were_changed():
    assert run_name(Toy()) == "toy"
    assert run_name(Toy(polite=True)) == "toy-polite=True"
