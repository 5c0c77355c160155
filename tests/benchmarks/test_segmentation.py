"""Zero-shot segmentation: the paper's rule, ordinary mIoU and the released script's, on masks drawn by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scoring import refused, run_score, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.segmentation_metrics import from_run_lengths, run_lengths, script_iou, upsample
from vwlmm.benchmarks.voc_segmentation import CLASSES, read_mask

CAT, DOG = CLASSES.index("cat") + 1, CLASSES.index("dog") + 1


def voc(folder, masks):
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "SegmentationClass").mkdir()
    for name, labels in masks.items():
        picture = Image.fromarray(np.array(labels, dtype=np.uint8), mode="P")
        picture.putpalette([value % 256 for value in range(768)])
        picture.save(folder / "SegmentationClass" / f"{name}.png")
    listed = folder / "ImageSets/Segmentation/val.txt"
    listed.write_text("".join(f"{name}\n" for name in masks))
    return listed


def grid(**named):
    """Scores of every class; those not named are low everywhere."""
    some = next(iter(named.values()))
    low = [[-1.0] * len(some[0]) for _ in some]
    return {name: named.get(name, low) for name in CLASSES} | (
        {"background": named["background"]} if "background" in named else {}
    )


# Left half cat, right half dog; the last row is background, its last pixel void.
MASK = [[CAT] * 2 + [DOG] * 2 for _ in range(3)] + [[0, 0, 0, 255]]


@pytest.fixture
def listed(tmp_path):
    return voc(tmp_path / "VOC2012", {"2007_000033": MASK})


def answer(tmp_path, **found):
    return write_lines(tmp_path / "a.jsonl", [{"question_id": "2007_000033", **found}])


def test_masks_are_the_palettes_numbers(listed):
    assert read_mask(listed.parent.parent.parent / "SegmentationClass/2007_000033.png").tolist() == MASK


def test_the_papers_rule_looks_at_things_only(tmp_path, listed):
    # Cat everywhere but in the last column.
    scores = grid(cat=[[1.0, 1.0, 1.0, 0.0]] * 4, dog=[[0.0, 0.0, 0.0, 1.0]] * 4)
    metrics = run_score(tmp_path, "voc_segmentation", listed, answer(tmp_path, scores=scores))["metrics"]
    assert metrics["IoU/cat"] == pytest.approx(6 / 9)
    assert metrics["IoU/dog"] == pytest.approx(3 / 6)
    assert metrics["mIoU"] == pytest.approx((6 / 9 + 3 / 6) / 2)


def test_ordinary_miou_counts_background_and_leaves_void_out(tmp_path, listed):
    scores = grid(
        cat=[[1.0, 1.0, 0.0, 0.0]] * 4,
        dog=[[0.0, 0.0, 1.0, 1.0]] * 4,
        background=[[0.5] * 4] * 3 + [[2.0] * 4],
    )
    result = run_score(
        tmp_path,
        "voc_segmentation",
        listed,
        answer(tmp_path, scores=scores),
        "--option",
        "rule=all",
        "background=the background",
    )
    assert result["metrics"] == {"mIoU": 1.0, "IoU/cat": 1.0, "IoU/dog": 1.0, "IoU/background": 1.0}


def test_predicted_labels_can_be_given_as_runs(tmp_path, listed):
    predicted = torch.tensor([[CAT] * 3 + [DOG]] * 4)
    pairs = run_lengths(predicted)
    assert torch.equal(from_run_lengths(pairs, (4, 4)), predicted)
    metrics = run_score(tmp_path, "voc_segmentation", listed, answer(tmp_path, labels=pairs))["metrics"]
    assert metrics["mIoU"] == pytest.approx((6 / 9 + 3 / 6) / 2)


def test_iou_is_of_the_data_set_and_not_the_mean_of_pictures(tmp_path):
    listed = voc(tmp_path / "VOC2012", {"a": [[CAT] * 8], "b": [[CAT, DOG]]})
    rows = [
        {"question_id": "a", "labels": [[CAT, 8]]},
        {"question_id": "b", "labels": [[DOG, 2]]},
    ]
    metrics = run_score(tmp_path, "voc_segmentation", listed, write_lines(tmp_path / "a.jsonl", rows))["metrics"]
    assert metrics["IoU/cat"] == pytest.approx(8 / 9)
    assert metrics["IoU/dog"] == pytest.approx(1 / 2)


def test_the_scripts_rule_is_min_max_and_threshold_for_each_class_by_itself():
    truth = torch.zeros(256, 256).long()
    truth[:, 128:] = CAT
    truth[:, :8] = 255  # void counts as background
    ramp = torch.arange(256).float().repeat(256, 1)  # above 0.4 of its range from column 103 on
    found = script_iou({CAT: ramp}, truth, linear_masks=False)
    assert found == {CAT: pytest.approx(128 / (256 - 103))}
    assert script_iou({CAT: torch.ones(2, 2)}, truth, linear_masks=False) == {CAT: 0.0}


def test_linear_masks_lose_pixels_at_edges():
    truth = torch.zeros(100, 100).long()
    truth[:, 50:] = CAT
    perfect = upsample(truth[None].float(), (256, 256))[0]
    nearest = script_iou({CAT: perfect}, truth, linear_masks=False)[CAT]
    linear = script_iou({CAT: perfect}, truth, linear_masks=True)[CAT]
    assert linear < nearest


def test_the_scripts_rule_through_the_command(tmp_path, listed):
    scores = grid(cat=[[1.0, 1.0, 0.0, 0.0]] * 3 + [[0.0] * 4], dog=[[0.0, 0.0, 1.0, 1.0]] * 3 + [[0.0] * 4])
    result = run_score(
        tmp_path,
        "voc_segmentation",
        listed,
        answer(tmp_path, scores=scores),
        "--option",
        "rule=script",
        "linear_masks=false",
    )
    assert 0.7 < result["metrics"]["mIoU"] < 1.0
    assert result["metrics"]["mIoU"] == pytest.approx(result["metrics"]["mIoU/pictures"])


def test_answers_from_embeddings_are_patches_times_class_texts(tmp_path, listed):
    class Patches:
        def embed_images(self, images):
            raise AssertionError("segmentation looks at patches")

        def embed_texts(self, texts):
            assert texts[CLASSES.index("tvmonitor")] == "photo of tv monitor"
            return torch.eye(20)

        def embed_patches(self, image):
            assert image == "2007_000033.jpg"
            patches = torch.zeros(2, 2, 20)
            patches[:, 0, CAT - 1] = patches[:, 1, DOG - 1] = 1.0
            return patches

    benchmark = get_benchmark("voc_segmentation", template="photo of {}")
    rows = list(benchmark.answer_all(benchmark.read(Files((listed,))), Patches(), 20))
    assert rows[0]["scores"]["cat"] == [[1.0, 0.0], [1.0, 0.0]]
    metrics = run_score(tmp_path, "voc_segmentation", listed, write_lines(tmp_path / "a.jsonl", rows))["metrics"]
    assert metrics["mIoU"] == 1.0


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"scores": {"cat": [[1.0]]}}, "expected rows of scores for each of 20 classes"),
        ({"scores": grid(cat=[[1.0]]) | {"dog": [[1.0, 2.0]]}}, "field scores.dog: expected finite numbers in rows"),
        ({"scores": grid(cat=[[1.0]]) | {"dog": "x"}}, "field scores.dog"),
        ({"labels": [[CAT, 5]]}, "expected runs over 4×4 pixels, found 5"),
        ({"labels": [[CAT]]}, "field labels[0]: expected [label, count]"),
        ({"labels": [[21, 16]]}, "a label from 0 to 20; found [21, 16]"),
        ({"text": "cat"}, "field scores: expected an object"),
    ],
)
def test_a_bad_line_is_named(capsys, tmp_path, listed, found, message):
    assert message in refused(capsys, tmp_path, "voc_segmentation", listed, answer(tmp_path, **found))


def test_a_list_with_an_unknown_picture_is_refused(capsys, tmp_path, listed):
    listed.write_text("2007_000033\n2007_999999\n")
    told = refused(capsys, tmp_path, "voc_segmentation", listed, answer(tmp_path, labels=[[CAT, 16]]))
    assert f"{listed}, line 2: expected the name of a picture with a mask, found '2007_999999'" in told
    other = tmp_path / "answers.json"
    other.write_text(json.dumps([{"question_id": 1}]))
    assert "line 1" in refused(capsys, tmp_path, "voc_segmentation", other, other)
