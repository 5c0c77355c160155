"""Image-text retrieval through `vwlmm score`: the collected cases, ties, both ways of writing an answer, bad lines."""

import json

import pytest
import torch
from scoring import cases, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.retrieval import clean_caption
from vwlmm.benchmarks.retrieval_metrics import image_ranks, text_ranks

CASES = cases("retrieval")["cases"]


def names(count):
    return [f"{i:010d}.jpg" for i in range(count)]


def karpathy(path, owners, dataset="flickr30k"):
    pictures = [
        {
            "filename": name,
            "imgid": i,
            "split": "test",
            "sentences": [{"raw": f"caption {t} of {i}"} for t, owner in enumerate(owners) if owner == i],
        }
        for i, name in enumerate(names(max(owners) + 1))
    ]
    if dataset == "coco":
        pictures = [{**p, "filepath": "val2014", "cocoid": 100 + p["imgid"]} for p in pictures]
    return write(path, {"dataset": dataset, "images": pictures})


def albef(path, owners):
    rows = [
        {"image": f"flickr30k-images/{name}", "caption": [f"{t}" for t, owner in enumerate(owners) if owner == i]}
        for i, name in enumerate(names(max(owners) + 1))
    ]
    return write(path, rows)


def score_lines(similarity):
    rows = zip(names(len(similarity)), similarity, strict=True)
    return [{"question_id": name, "scores": list(row)} for name, row in rows]


def check(metrics, case):
    for (ours, theirs), k in [
        (pair, k) for pair in (("image_to_text", "txt"), ("text_to_image", "img")) for k in (1, 5, 10)
    ]:
        assert metrics[f"{ours}/R@{k}"] == pytest.approx(case["freeze_align"][f"{theirs}_r{k}"] / 100, abs=1e-6)
        clip = "text_retrieval" if theirs == "txt" else "image_retrieval"
        assert metrics[f"{ours}/R@{k}"] == pytest.approx(case["clip_benchmark"][f"{clip}_recall@{k}"], abs=1e-6)
    assert metrics["image_to_text/R_mean"] == pytest.approx(case["freeze_align"]["txt_r_mean"] / 100, abs=1e-6)
    assert metrics["text_to_image/R_mean"] == pytest.approx(case["freeze_align"]["img_r_mean"] / 100, abs=1e-6)
    assert metrics["R_mean"] == pytest.approx(case["freeze_align"]["r_mean"] / 100, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("annotate", [karpathy, albef])
def test_every_case_as_similarities(tmp_path, name, annotate):
    case = CASES[name]
    annotations = annotate(tmp_path / "f.json", case["text_to_image"])
    answers = write_lines(tmp_path / "a.jsonl", score_lines(case["similarity_image_by_text"]))
    check(run_score(tmp_path, "flickr30k_retrieval", annotations, answers)["metrics"], case)


@pytest.mark.parametrize("name", CASES)
def test_every_case_as_ranks(tmp_path, name):
    case = CASES[name]
    annotations = karpathy(tmp_path / "f.json", case["text_to_image"], "coco")
    similarity, owners = torch.tensor(case["similarity_image_by_text"]), torch.tensor(case["text_to_image"])
    rows = [
        {"question_id": 100 + i, "text_ranks": of_texts, "image_ranks": of_image}
        for i, (of_texts, of_image) in enumerate(
            zip(text_ranks(similarity, owners), image_ranks(similarity, owners), strict=True)
        )
    ]
    answers = write_lines(tmp_path / "a.jsonl", list(reversed(rows)))
    check(run_score(tmp_path, "coco_retrieval", annotations, answers)["metrics"], case)


def test_ranks_are_those_of_a_naive_count():
    generator = torch.Generator().manual_seed(3)
    similarity = torch.randint(0, 4, (6, 14), generator=generator).float()  # many ties
    owners = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 5, 5, 5])
    for image in range(6):
        own = [t for t in range(14) if owners[t] == image]
        of_texts = [
            1 + sum(bool(similarity[image, t] >= similarity[image, o]) for t in range(14) if t not in own) for o in own
        ]
        of_image = [sum(bool(similarity[i, o] >= similarity[image, o]) for i in range(6)) for o in own]
        assert text_ranks(similarity, owners)[image] == of_texts
        assert image_ranks(similarity, owners)[image] == of_image


def test_an_encoder_to_which_everything_looks_alike_scores_zero(tmp_path):
    owners = [i for i in range(12) for _ in range(5)]
    annotations = karpathy(tmp_path / "f.json", owners)
    answers = write_lines(tmp_path / "a.jsonl", score_lines([[0.5] * 60] * 12))
    metrics = run_score(tmp_path, "flickr30k_retrieval", annotations, answers)["metrics"]
    assert set(metrics.values()) == {0.0}


class Table:
    """Embeds pictures and texts as rows of given tables."""

    def __init__(self, images, texts):
        self.images, self.texts = images, texts

    def embed_images(self, images):
        return torch.stack([self.images[image] for image in images])

    def embed_texts(self, texts):
        return torch.stack([self.texts[text] for text in texts])


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_answers_from_embeddings_are_the_ranks_of_their_cosines(tmp_path, batch_size):
    owners = [0, 0, 1, 2, 2, 2]
    annotations = karpathy(tmp_path / "f.json", owners)
    benchmark = get_benchmark("flickr30k_retrieval")
    questions = benchmark.read(Files((annotations,)))
    vectors = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    table = Table(
        dict(zip(names(3), vectors[:3], strict=True)),
        {f"caption {t} of {owner}": vectors[3 + t] for t, owner in enumerate(owners)},
    )
    answers = list(benchmark.answer_all(questions, table, batch_size))
    written = write_lines(tmp_path / "a.jsonl", answers)
    similarity = (vectors[:3] @ vectors[3:].T).tolist()
    given = write_lines(tmp_path / "b.jsonl", score_lines(similarity))
    ranks = run_score(tmp_path, "flickr30k_retrieval", annotations, written)
    scores = run_score(tmp_path, "flickr30k_retrieval", annotations, given)
    assert ranks["metrics"] == scores["metrics"]
    assert ranks["details"] == scores["details"]


def test_captions_are_cleaned_only_when_asked(tmp_path):
    assert (
        clean_caption("A man's dog, (well-known/old) runs!  " + "x " * 40)
        == "a mans dog well known old runs" + " x" * 23
    )
    annotations = write(tmp_path / "f.json", [{"image": "a.jpg", "caption": ["A Dog!", "Two"]}])
    for options, texts in [({}, ["A Dog!", "Two"]), ({"clean_captions": True, "captions_per_image": 1}, ["a dog"])]:
        benchmark = get_benchmark("flickr30k_retrieval", **options)
        assert benchmark.texts_of(benchmark.read(Files((annotations,)))[0]) == texts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[1].update(scores=rows[1]["scores"][:-1]),
            "expected 3 numbers, one for each of the captions",
        ),
        (lambda rows: rows[1]["scores"].__setitem__(2, None), "field scores[2]: expected a finite number, found None"),
        (lambda rows: rows[1]["scores"].__setitem__(2, float("nan")), "field scores[2]: expected a finite number"),
        (lambda rows: rows[1].pop("scores"), "line 2, field scores: expected a list, found no such field"),
        (lambda rows: rows[1].update(question_id="x.jpg"), "expected the id of one of the 3 questions"),
        (lambda rows: rows.append(rows[0]), "found the same answer again"),
        (lambda rows: rows.pop(), "1 have none"),
        (
            lambda rows: rows[1].update(text_ranks=[1], image_ranks=[1]) or rows[1].pop("scores"),
            "found 2 of 3 with scores",
        ),
        (
            lambda rows: rows[1].update(text_ranks=[4], image_ranks=[1]) or rows[1].pop("scores"),
            "field text_ranks[0]: expected a rank from 1 to 3, found 4",
        ),
        (
            lambda rows: rows[1].update(text_ranks=[1]) or rows[1].pop("scores"),
            "field image_ranks: expected 1 ranks, one for each caption of the picture; found None",
        ),
    ],
)
def test_a_bad_line_is_named(capsys, tmp_path, change, message):
    annotations = karpathy(tmp_path / "f.json", [0, 1, 2])
    rows = json.loads(json.dumps(score_lines([[1.0, 2.0, 3.0]] * 3)))
    change(rows)
    answers = tmp_path / "a.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = refused(capsys, tmp_path, "flickr30k_retrieval", annotations, answers)
    assert message in told


def test_a_file_of_another_set_or_part_is_refused(capsys, tmp_path):
    annotations = karpathy(tmp_path / "f.json", [0, 1, 2])
    answers = write_lines(tmp_path / "a.jsonl", score_lines([[1.0, 2.0, 3.0]] * 3))
    assert "expected 'coco', found 'flickr30k'" in refused(capsys, tmp_path, "coco_retrieval", annotations, answers)
    told = refused(capsys, tmp_path, "flickr30k_retrieval", annotations, answers, "--option", "split=val")
    assert "expected pictures of part 'val', found only test" in told
    twice = write(tmp_path / "g.json", [{"image": "a.jpg", "caption": ["x"]}] * 2)
    assert "a.jpg is there twice" in refused(capsys, tmp_path, "flickr30k_retrieval", twice, answers)
