"""Visual semantic arithmetic through `vwlmm score`: R@K of nearest words, BLEU-1 of what was written."""

import pytest
from scoring import details_by_id, refused, run_score, write_lines

from vwlmm.benchmarks import Files, get_benchmark

TRIPLES = [
    {"plus": ["a.png", "b.png"], "minus": ["c.png"], "target": "King"},
    {"id": "flag", "plus": ["d.png"], "minus": [], "target": ["red", "crimson"], "note": "what this is about"},
    {"plus": ["e.png"], "minus": ["f.png"], "expected": ["blue sky"]},
]


@pytest.fixture
def triples(tmp_path):
    return write_lines(tmp_path / "triples.jsonl", TRIPLES)


def score(tmp_path, triples, *rows):
    return run_score(tmp_path, "arithmetic", triples, write_lines(tmp_path / "a.jsonl", rows))


def test_a_hit_is_any_target_among_the_first_words(tmp_path, triples):
    words = ["one", "two", "three", "four", "king", "six", "seven", "eight", "nine", "ten"]
    result = score(
        tmp_path,
        triples,
        {"question_id": "1", "words": words},
        {"question_id": "flag", "words": ["Crimson ", *words[:9]]},
        {"question_id": "3", "words": words},
    )
    assert result["metrics"] == pytest.approx({"R@1": 1 / 3, "R@5": 2 / 3, "R@10": 2 / 3})
    assert {name: d["rank"] for name, d in details_by_id(result).items()} == {"1": 5, "flag": 1, "3": 0}


def test_of_fewer_words_no_larger_k_is_given(tmp_path, triples):
    rows = [{"question_id": name, "words": ["king", "red", "sky", "a", "b"]} for name in ("1", "flag", "3")]
    assert set(score(tmp_path, triples, *rows)["metrics"]) == {"R@1", "R@5"}


def test_what_was_written_is_compared_with_the_target(tmp_path, triples):
    metrics = score(
        tmp_path,
        triples,
        {"question_id": "1", "text": "king"},
        {"question_id": "flag", "text": "a crimson flag."},
        {"question_id": "3", "text": "skyblue"},
    )["metrics"]
    assert metrics["BLEU-1"] == pytest.approx(2 / 5, abs=1e-6)
    assert metrics["text_has_target"] == pytest.approx(2 / 3)


def test_the_answers_come_from_words_and_text_of_the_sum(triples):
    class Adds:
        def nearest_words(self, plus, minus, num_words):
            return [*plus, *minus][:num_words]

        def describe(self, plus, minus):
            return f"{len(plus)} and {len(minus)}"

    benchmark = get_benchmark("arithmetic")
    questions = benchmark.read(Files((triples,)))
    assert questions[0].images == ("a.png", "b.png", "c.png")
    answers = list(benchmark.answer_all(questions, Adds(), 1))
    assert answers[0] == {"question_id": "1", "words": ["a.png", "b.png", "c.png"], "text": "2 and 1"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"plus": ["a.png"], "minus": []}, "field target: expected the word that should come out"),
        ({"plus": [], "minus": [], "target": "x"}, "field plus: expected at least one picture"),
        ({"plus": ["a.png", 5], "minus": [], "target": "x"}, "field plus[1]: expected the name of a picture"),
        ({"plus": ["a.png"], "minus": [], "target": " "}, "field target: expected a word"),
        ({"id": "flag", "plus": ["a.png"], "minus": [], "target": "x"}, "field id: expected each id once"),
    ],
)
def test_a_wrong_triple_is_named(capsys, tmp_path, triples, row, message):
    write_lines(triples, [*TRIPLES, row])
    answers = write_lines(tmp_path / "a.jsonl", [{"question_id": "1", "words": []}])
    told = refused(capsys, tmp_path, "arithmetic", triples, answers)
    assert f"{triples}, line 4" in told
    assert message in told


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": "3", "words": "sky"}, "field words: expected a list of words"),
        ({"question_id": "3", "words": ["sky"], "text": 5}, "field text: expected text"),
        ({"question_id": "4", "words": ["sky"]}, 'found "4"'),
        ({"question_id": "3"}, "field words: expected a list"),
        ({"question_id": "3", "text": "sky"}, "expected words in every line or text in every line"),
    ],
)
def test_a_bad_line_is_named(capsys, tmp_path, triples, row, message):
    rows = [{"question_id": "1", "words": ["x"]}, {"question_id": "flag", "words": ["x"]}, row]
    assert message in refused(capsys, tmp_path, "arithmetic", triples, write_lines(tmp_path / "a.jsonl", rows))
