"""Zero-shot segmentation: the paper's measure, the script's and the usual one, each against a plain form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_clip, tiny_llama
from transformers import CLIPVisionModel, LlamaModel

from vwlmm import DualEncoderModel
from vwlmm.segmentation import (
    VOID,
    Counts,
    SegmentationScores,
    argmax_mask,
    class_maps,
    paper_prediction,
    patch_embeddings,
    script_ious,
)


@pytest.fixture
def scene():
    """A 4 × 4 grid of which the left half is class 1 and the right upper quarter class 3, the rest background."""
    classes = torch.eye(5)[:3]
    patches = torch.zeros(4, 4, 5)
    patches[:, :2] = classes[0] * 2
    patches[:2, 2:] = classes[2]
    patches[2:, 2:] = torch.eye(5)[4]  # like no class
    mask = torch.zeros(8, 8, dtype=torch.long)
    mask[:, :4] = 1
    mask[:4, 4:] = 3
    return patches, classes, mask


def test_maps_are_cosines_brought_to_the_size_of_the_picture(scene):
    patches, classes, _ = scene
    maps = class_maps(patches, classes, (4, 4))
    torch.testing.assert_close(maps, torch.einsum("rcd,kd->krc", F.normalize(patches, dim=-1), classes))
    assert class_maps(patches, classes, (8, 12)).shape == (3, 8, 12)
    assert class_maps(patches, classes, (4, 4), scaled=False).max() == 2


def test_every_pixel_gets_the_nearest_class_or_the_background(scene):
    patches, classes, _ = scene
    maps = class_maps(patches, classes, (4, 4))
    assert argmax_mask(maps, [1, 2, 3]).unique().tolist() == [1, 3]
    mask = argmax_mask(maps, [1, 2, 3], background=0, threshold=0.5)
    assert mask.tolist() == [[1, 1, 3, 3]] * 2 + [[1, 1, 0, 0]] * 2


def test_iou_counts_pixels_over_all_pictures_without_void():
    generator = np.random.default_rng(0)
    counts, hits, unions = Counts.zeros(4), np.zeros(4), np.zeros(4)
    for _ in range(3):
        predicted, actual = generator.integers(0, 3, (6, 5)), generator.integers(0, 4, (6, 5))
        actual[0, :3] = VOID
        counts.add(torch.from_numpy(predicted), torch.from_numpy(actual))
        for label in range(4):
            p, a = (predicted == label) & (actual != VOID), actual == label
            hits[label] += (p & a).sum()
            unions[label] += (p | a).sum()
    np.testing.assert_allclose(counts.iou().numpy(), hits / unions)
    assert counts.mean_iou() == pytest.approx((hits / unions).mean())
    assert counts.mean_iou(foreground_only=True) == pytest.approx((hits / unions)[1:].mean())


def test_a_label_that_never_occurs_is_not_averaged():
    counts = Counts.zeros(3)
    counts.add(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    assert counts.mean_iou() == 1.0


def test_the_paper_chooses_among_all_classes_or_those_present(scene):
    patches, classes, mask = scene
    other = classes.clone()
    other[1] = F.normalize(classes[0] + 0.1 * classes[1], dim=0) * 1.0
    patches = patches.clone()
    patches[0, 0] = other[1]  # nearest to class 2, which is not in the picture
    every, present = (paper_prediction(patches, other, mask, candidates=way) for way in ("all", "present"))
    assert every[0, 0] == 2
    assert present[0, 0] == 1
    assert 0 not in every.unique()
    with pytest.raises(ValueError, match="'all' classes or those 'present'"):
        paper_prediction(patches, other, mask, candidates="some")


def test_the_script_cuts_the_map_of_each_class_present_by_itself(scene):
    patches, classes, mask = scene
    found = script_ious(patches, classes, mask)
    small = mask.float()[None, None]
    resized = F.interpolate(small, size=(256, 256), mode="bilinear", align_corners=False)[0, 0].long()
    assert sorted(found) == [1, 3]
    assert 2 in resized.unique()  # no pixel is of class 2: resizing label numbers makes it up between 1 and 3
    for label, value in found.items():
        own = F.interpolate((patches @ classes[label - 1])[None, None], size=(256, 256), mode="bilinear")[0, 0]
        low, high = own.min(), own.max()
        predicted = (own - low) / (high - low) > 0.4 if high > low else torch.zeros_like(own, dtype=torch.bool)
        actual = resized == label
        assert value == pytest.approx(float((predicted & actual).sum() / (predicted | actual).sum()))


def test_the_three_measures_of_a_perfect_encoder(scene):
    patches, classes, mask = scene
    scores = SegmentationScores(classes, threshold=0.5)
    large = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)  # few pixels lie between two patches
    scores.add(patches, patches, large)
    result = scores.result()
    assert result["miou"] > 0.85
    # A quarter of the picture is background, which the paper's way gives to some class.
    assert result["paper_all_pixels"] < result["miou"]
    assert result["paper"] > 0.9
    assert set(result) == {"paper", "paper_all_pixels", "script_mean", "script_by_class", "miou"}


def test_masks_that_do_not_match_the_class_list_are_refused(scene):
    patches, classes, mask = scene
    scores = SegmentationScores(classes)
    with pytest.raises(ValueError, match=r"3 names \(labels 1 to 3\), but a mask names 7"):
        scores.add(patches, patches, torch.where(mask == 3, 7, mask))
    with pytest.raises(ValueError, match="names no class"):
        scores.add(patches, patches, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="of one size"):
        Counts.zeros(2).add(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="a mask names 5"):
        Counts.zeros(2).add(torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), 5))


def pair(**switches):
    return DualEncoderModel.from_towers(CLIPVisionModel(tiny_clip()), LlamaModel(tiny_llama()), **switches)


def test_the_mean_of_the_patches_with_the_class_token_is_the_picture():
    model, pixels = pair(), torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        patches = patch_embeddings(model, pixels)
        assert patches.shape == (2, 2, 2, model.config.embed_dim)
        torch.testing.assert_close(F.normalize(patches.flatten(1, 2).mean(1), dim=-1), model.encode_image(pixels))
        alone = patch_embeddings(model, pixels, cls_residual=False)
        cls = model.cls_vision_projection(model.vision_tokens(pixels)[:, 0])
        torch.testing.assert_close(patches - alone, cls[:, None, None].expand_as(alone), atol=1e-5, rtol=1e-4)


def test_patches_of_an_oblong_picture_keep_its_shape():
    # 28 × 42 pixels are 2 × 3 patches; CLIP's position embeddings are stretched.
    model, pixels = pair(), torch.randn(1, 3, 28, 42)
    tokens = model.vision_tower(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    model.vision_tokens = lambda _: tokens
    assert patch_embeddings(model, pixels).shape[:3] == (1, 2, 3)


def test_a_model_without_projected_patches_cannot_segment():
    with pytest.raises(ValueError, match="does not project patches"):
        patch_embeddings(pair(local_vision_projection="identity"), torch.randn(1, 3, 28, 28))
