"""The streamed choice equals the textbook one over the whole matrix, whatever the blocks; int8 does not overflow."""

import tracemalloc

import numpy as np
import pytest
import torch
from curation_cases import CONCEPTS, brute_force, embed

from vwlmm.curation import Fields, Prototypes, Scale, ScoreStore, choose
from vwlmm.curation.store import cosines


def scored(folder, files, prototypes, scale, block_rows):
    store = ScoreStore(folder, files, scale, block_rows)
    store.open({})
    store.score(embed, prototypes, Fields())
    return store


def matrix(num_rows, prototypes):
    """Cosines in float64, `[concepts, rows]`."""
    features = embed([f"caption {i}" for i in range(num_rows)]).double()
    return prototypes.vectors.double() @ torch.nn.functional.normalize(features, dim=1).T


@pytest.mark.parametrize("order", ["mean", "rank"])
@pytest.mark.parametrize("block_rows", [7, 64, 1000])
def test_with_float32_scores_the_choice_is_the_float64_one(tmp_path, shards, prototypes, block_rows, order):
    store = scored(tmp_path / "s", shards(100, 1, 199), prototypes, Scale("float32"), block_rows)
    choice = choose(store, CONCEPTS, per_concept=20, depth=30, order=order)
    ranking, chosen = brute_force(matrix(300, prototypes), 20, 30, order)
    assert choice.order.tolist() == ranking
    assert list(zip(choice.rows.tolist(), choice.concepts.tolist(), strict=True)) == chosen


@pytest.mark.parametrize("block_rows", [7, 64, 1000])
def test_with_int8_scores_the_choice_is_the_float64_one_of_the_stored_scores(tmp_path, shards, prototypes, block_rows):
    scale = Scale("int8", -0.6, 0.6)  # some scores are clipped at both ends, many are equal
    store = scored(tmp_path / "s", shards(100, 1, 199), prototypes, scale, block_rows)
    stored = torch.from_numpy(scale.decode(scale.encode(matrix(300, prototypes).float().numpy())))
    choice = choose(store, CONCEPTS, per_concept=20, depth=30)
    ranking, chosen = brute_force(stored, 20, 30)
    assert choice.order.tolist() == ranking
    assert list(zip(choice.rows.tolist(), choice.concepts.tolist(), strict=True)) == chosen


def test_no_row_is_chosen_twice_and_a_concept_gets_less_when_they_run_out(tmp_path, shards, prototypes):
    store = scored(tmp_path / "s", shards(50), prototypes, Scale("float32"), 16)
    choice = choose(store, CONCEPTS, per_concept=12, depth=5)
    assert sorted(choice.rows.tolist()) == list(range(50))
    counts = [int((choice.concepts == concept).sum()) for concept in choice.order]
    assert counts == [12, 12, 12, 12, 2, 0]


def test_the_ends_of_the_range_fit_into_int8():
    scale = Scale("int8", -0.3, 0.4)
    scores = np.array([-1.0, -0.3, 0.05, 0.4, 0.4001, 1.0])
    assert scale.encode(scores).tolist() == [-127, -127, 0, 127, 127, 127]  # the published form makes 0.4 the worst
    assert scale.num_clipped(scores) == (1, 2)


def test_codes_keep_the_order_and_are_off_by_half_a_step_at_most():
    scale, scores = Scale("int8", -0.3, 0.4), np.linspace(-0.3, 0.4, 10_001)
    codes = scale.encode(scores)
    assert (np.diff(codes.astype(int)) >= 0).all()
    assert np.abs(scale.decode(codes) - scores).max() <= scale.resolution * (1 + 1e-9)
    assert codes.min() > scale.no_score


def test_the_choice_over_millions_of_scores_holds_one_concept_of_a_block_at_a_time(tmp_path):
    rows, concepts, block_rows = 200_000, 20, 8192
    generator = np.random.default_rng(0)
    codes = generator.integers(
        -127, 128, (concepts, rows), dtype=np.int8
    )  # 4 million scores, most of them equal to another
    store = ScoreStore(tmp_path / "s", [tmp_path / "one.jsonl"], Scale("int8"), block_rows)
    folder = tmp_path / "s" / "000000"
    folder.mkdir(parents=True)
    starts = range(0, rows, block_rows)
    for number, start in enumerate(starts):
        np.save(folder / f"{number:06d}.npy", codes[:, start : start + block_rows])
    (folder / "shard.json").write_text(f'{{"rows": {rows}, "blocks": {len(starts)}}}')
    tracemalloc.start()
    choice = choose(store, concepts, per_concept=500, depth=5000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5e6  # of which 0.2 MB say what is taken; the scores are 4 MB as int8, 32 MB in float64
    best = np.sort(codes, axis=1)[:, ::-1][:, :5000].astype(float).mean(1)
    assert choice.order.tolist() == np.argsort(best, kind="stable").tolist()
    taken = np.zeros(rows, dtype=bool)
    for concept in choice.order:
        free = np.where(taken, -1000, codes[concept].astype(int))
        expected = np.argsort(-free, kind="stable")[:500]
        assert choice.rows[choice.concepts == concept].tolist() == expected.tolist()
        taken[expected] = True


def test_commonality_takes_all_captions_where_there_are_fewer_than_its_depth(tmp_path, shards, prototypes):
    store = scored(tmp_path / "s", shards(40), prototypes, Scale("float32"), 16)
    choice = choose(store, CONCEPTS, per_concept=5, depth=25_000)
    np.testing.assert_allclose(choice.commonality, matrix(40, prototypes).mean(1).numpy(), atol=1e-6)


def test_features_of_another_width_or_not_finite_are_refused(prototypes):
    with pytest.raises(ValueError, match=r"Prototypes have 8 dimensions, captions were embedded as \(2, 5\)"):
        cosines(torch.ones(2, 5), prototypes)
    with pytest.raises(ValueError, match="1 of 3 captions have an embedding that is zero or not finite"):
        cosines(torch.tensor([[1.0] * 8, [float("nan")] * 8, [2.0] * 8]), prototypes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "best"}, "order is mean or rank"),
        ({"per_concept": 0}, "at least 1"),
        ({"depth": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, shards, prototypes, change, message):
    store = scored(tmp_path / "s", shards(5), prototypes, Scale("float32"), 16)
    with pytest.raises(ValueError, match=message):
        choose(store, CONCEPTS, **change)
    with pytest.raises(ValueError, match="from low to high"):
        Scale("int8", 0.4, 0.4)
    with pytest.raises(ValueError, match="int8 or float32"):
        Scale("int4")


def test_prototypes_of_one_name_twice_are_refused():
    with pytest.raises(ValueError, match="one name twice"):
        Prototypes(["cat", "cat"], torch.eye(2))
