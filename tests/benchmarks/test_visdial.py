"""Visual Dialog through `vwlmm score`: ranking of answers, its traps, and retrieval in both directions."""

import json
import math

import pytest
import torch
from scoring import details_by_id, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.ranking_metrics import ndcg, pessimistic_ranks, ranks_as_permutation

# Two dialogues of two rounds with four options each; the real file has ten rounds and a hundred options.
VISDIAL = {
    "version": "1.0",
    "split": "val2018",
    "data": {
        "questions": ["is it sunny", "what color is the dog"],
        "answers": ["yes", "no", "brown", "black"],
        "dialogs": [
            {
                "image_id": 185565,
                "caption": "a dog in a park",
                "dialog": [
                    {"question": 0, "answer": 0, "answer_options": [3, 0, 1, 2], "gt_index": 1},
                    {"question": 1, "answer": 2, "answer_options": [2, 1, 0, 3], "gt_index": 0},
                ],
            },
            {
                "image_id": 7,
                "caption": "a black dog",
                "dialog": [
                    {"question": 1, "answer": 3, "answer_options": [0, 1, 2, 3], "gt_index": 3},
                    {"question": 0, "answer": 1, "answer_options": [0, 1, 2, 3], "gt_index": 1},
                ],
            },
        ],
    },
}
DENSE = [
    {"image_id": 185565, "round_id": 1, "gt_relevance": [0.0, 1.0, 0.5, 0.0]},
    {"image_id": 7, "round_id": 2, "relevance": [0.0, 0.2, 0.0, 1.0]},
]
SCORES = {
    "185565/1": [-1.0, -2.0, -3.0, -4.0],  # right one second
    "185565/2": [-1.0, -2.0, -3.0, -4.0],  # right one first
    "7/1": [-1.0, -1.0, -1.0, -1.0],  # all alike
    "7/2": [-4.0, -3.0, -2.0, -1.0],  # right one third
}


@pytest.fixture
def official(tmp_path):
    return [write(tmp_path / "visdial_1.0_val.json", VISDIAL), write(tmp_path / "dense.json", DENSE)]


@pytest.fixture
def answers(tmp_path):
    return write_lines(tmp_path / "a.jsonl", [{"question_id": n, "scores": s} for n, s in SCORES.items()])


def test_figures_are_those_worked_out_by_hand(tmp_path, official, answers):
    result = run_score(tmp_path, "visdial", official, answers)
    metrics = result["metrics"]
    assert {name: d["rank"] for name, d in details_by_id(result).items()} == {
        "185565/1": 2,
        "185565/2": 1,
        "7/1": 4,
        "7/2": 3,
    }
    assert metrics["MRR"] == pytest.approx((1 / 2 + 1 + 1 / 4 + 1 / 3) / 4)
    assert (metrics["R@1"], metrics["R@5"], metrics["R@10"]) == (0.25, 1.0, 1.0)
    assert metrics["mean_rank"] == pytest.approx(2.5)
    # Two relevant options each, so two places count: (0, 1) of the first round, (1, 0) of the last one.
    first = (0 + 1.0 / math.log2(3)) / (1.0 + 0.5 / math.log2(3))
    last = (1.0 + 0 / math.log2(3)) / (1.0 + 0.2 / math.log2(3))
    assert metrics["NDCG"] == pytest.approx((first + last) / 2, abs=1e-9)
    assert next(iter(metrics)) == "NDCG"


def test_evalai_ranks_give_the_same_figures_and_rounds_count_from_one(tmp_path, official):
    ranks = {"185565/1": [1, 2, 3, 4], "185565/2": [1, 2, 3, 4], "7/1": [1, 2, 3, 4], "7/2": [4, 3, 2, 1]}
    entries = [
        {"image_id": int(name.split("/")[0]), "round_id": int(name.split("/")[1]), "ranks": of}
        for name, of in ranks.items()
    ]
    result = run_score(tmp_path, "visdial", official, write(tmp_path / "e.json", entries))
    scores = write_lines(
        tmp_path / "s.jsonl", [{"question_id": n, "scores": [-r for r in of]} for n, of in ranks.items()]
    )
    assert result["metrics"] == run_score(tmp_path, "visdial", official, scores)["metrics"]


def test_without_dense_annotations_there_is_no_ndcg(tmp_path, official, answers):
    result = run_score(tmp_path, "visdial", official[0], answers)
    assert "NDCG" not in result["metrics"]
    assert result["metrics"]["R@1"] == 0.25


def test_the_submission_has_each_rank_once(tmp_path, official, answers):
    run_score(tmp_path, "visdial", official, answers, "--submission", tmp_path / "up")
    entries = json.loads((tmp_path / "up" / "visdial_submission.json").read_text())
    assert entries[0] == {"image_id": 185565, "round_id": 1, "ranks": [1, 2, 3, 4]}
    assert entries[2] == {"image_id": 7, "round_id": 1, "ranks": [1, 2, 3, 4]}
    assert entries[3]["ranks"] == [4, 3, 2, 1]


def test_the_prompt_has_all_earlier_rounds_and_ends_behind_the_answers_mark(official):
    benchmark = get_benchmark("visdial")
    questions = benchmark.read(Files(tuple(official)))
    assert questions[0].prompt == "Q: is it sunny?\nA: "
    assert questions[1].prompt == "Q: is it sunny?\nA: yes\nQ: what color is the dog?\nA: "
    assert questions[0].images == ("VisualDialog_val2018_000000185565.jpg",)
    assert benchmark.options_of(questions[0]) == ["black", "yes", "no", "brown"]
    captioned = get_benchmark("visdial", caption=True).read(Files(tuple(official)))
    assert captioned[0].prompt == "a dog in a park\nQ: is it sunny?\nA: "


def test_the_ranker_gives_the_line_of_the_answers_file(official):
    class ByLength:
        def rank(self, question, options):
            return [-float(len(option)) for option in options]

    benchmark = get_benchmark("visdial")
    question = benchmark.read(Files(tuple(official)))[0]
    assert benchmark.answer(question, ByLength()) == {"question_id": "185565/1", "scores": [-5.0, -3.0, -2.0, -5.0]}


def test_ties_are_ranked_last_and_written_in_their_own_order():
    assert pessimistic_ranks([3.0, 1.0, 3.0, 2.0]) == [2, 4, 2, 3]
    assert ranks_as_permutation([3.0, 1.0, 3.0, 2.0]) == [1, 4, 2, 3]
    assert ndcg([1, 1], [1.0, 0.0]) == 0.0  # the irrelevant one of two alike is taken first
    assert ndcg([1, 2, 3], [1.0, 0.5, 0.0]) == 1.0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"question_id": "7/2", "scores": [1, 2, 3]}, "expected 4 numbers, one for each of the options of the round"),
        ({"image_id": 7, "round_id": 2, "ranks": [1, 2, 3, 3]}, "field ranks: expected each of 1 to 4 once"),
        ({"image_id": 7, "round_id": 2, "ranks": [0, 1, 2, 3]}, "field ranks: expected each of 1 to 4 once"),
        ({"image_id": 7, "round_id": 0, "ranks": [1, 2, 3, 4]}, "no round 0 of image 7"),
        ({"question_id": "7/3", "scores": [1, 2, 3, 4]}, 'found "7/3"'),
        ({"question_id": "7/2", "text": "yes"}, "field scores: expected a list"),
    ],
)
def test_a_bad_line_is_named(capsys, tmp_path, official, answers, entry, message):
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    write_lines(answers, [*rows[:3], entry])
    told = refused(capsys, tmp_path, "visdial", official, answers)
    assert f"{answers}, line 4" in told
    assert message in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v, d: v["data"]["dialogs"][0]["dialog"][0].update(gt_index=0),
            "dialog[0].gt_index: expected the place",
        ),
        (lambda v, d: v["data"]["dialogs"][0]["dialog"][0].update(gt_index=9), "expected a place from 0 to 3, found 9"),
        (lambda v, d: v["data"]["dialogs"][0]["dialog"][1].update(question=9), "expected a number below 2, found 9"),
        (lambda v, d: v["data"]["dialogs"][1].update(image_id=185565), "expected one dialogue an image"),
        (lambda v, d: d[0].update(round_id=0), "no such round"),
        (lambda v, d: d[0].update(gt_relevance=[0.0]), "expected a list of 4, found 1"),
        (lambda v, d: d[0].update(gt_relevance=[0.0] * 4), "at least one relevant option"),
        (lambda v, d: v.pop("data"), "Is it a file of another benchmark?"),
    ],
)
def test_a_wrong_official_file_is_refused(capsys, tmp_path, answers, change, message):
    visdial, dense = json.loads(json.dumps(VISDIAL)), json.loads(json.dumps(DENSE))
    change(visdial, dense)
    files = [write(tmp_path / "v.json", visdial), write(tmp_path / "d.json", dense)]
    assert message in refused(capsys, tmp_path, "visdial", files, answers)


def test_retrieval_gives_both_directions_under_their_names(tmp_path, official):
    # Every dialogue finds its picture; picture 7 finds the other dialogue first.
    rows = [{"question_id": "185565", "scores": [3.0, 0.0]}, {"question_id": "7", "scores": [2.0, 1.0]}]
    metrics = run_score(tmp_path, "visdial_retrieval", official[0], write_lines(tmp_path / "r.jsonl", rows))["metrics"]
    assert metrics["dialogue_to_image/R@1"] == 1.0
    assert metrics["image_to_dialogue/R@1"] == 0.5
    assert next(iter(metrics)) == "dialogue_to_image/R@1"


def test_the_query_is_the_whole_dialogue(official):
    questions = get_benchmark("visdial_retrieval").read(Files((official[0],)))
    text = "Q: is it sunny? A: yes. Q: what color is the dog? A: brown."
    assert questions[0].record["captions"] == [text]

    class Table:
        def embed_images(self, images):
            return torch.eye(2)[[int("185565" not in image) for image in images]]

        def embed_texts(self, texts):
            return torch.eye(2)[[int(t != text) for t in texts]]

    answers = list(get_benchmark("visdial_retrieval").answer_all(questions, Table(), 1))
    assert answers[1] == {"question_id": "7", "text_ranks": [1], "image_ranks": [1]}
