"""Recall both ways, with several right answers, and with answers that are equally near."""

import pytest
import torch
from torch.nn.functional import normalize

from vwlmm.retrieval import recall


def unit(rows):
    return normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def test_pairs_that_are_nearest_to_each_other_have_recall_one():
    rows = torch.eye(4)
    assert set(recall(rows, rows).values()) == {1.0}


def test_recall_counts_the_right_answer_among_the_k_nearest():
    images = unit([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    texts = unit([[1.0, 0.1], [1.0, -1.0], [1.0, 0.9]])
    found = recall(images, texts, ks=(1, 2, 3))
    assert found["image_to_text_r1"] == pytest.approx(2 / 3)  # the second image's own text is the farthest
    assert found["image_to_text_r2"] == pytest.approx(2 / 3)
    assert found["image_to_text_r3"] == 1.0


def test_any_caption_of_an_image_is_right_and_any_image_of_a_caption():
    images, texts = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = recall(images, texts, image_labels=["a", "b"], text_labels=["b", "a", "b"], ks=(1,))
    assert found == {"image_to_text_r1": 1.0, "text_to_image_r1": 1.0}


def test_an_encoder_that_collapsed_scores_as_guessing_does():
    same = torch.ones(10, 3)
    found = recall(same, same)
    assert found["image_to_text_r1"] == pytest.approx(0.1)
    assert found["text_to_image_r5"] == pytest.approx(0.5)


def test_guessing_among_two_right_answers_of_four_is_right_two_times_in_three_by_the_second():
    same = torch.ones(4, 3)
    found = recall(same, same, image_labels=[0, 0, 1, 1], text_labels=[0, 0, 1, 1], ks=(1, 2))
    assert found["image_to_text_r1"] == pytest.approx(1 / 2)
    assert found["image_to_text_r2"] == pytest.approx(5 / 6)


def test_chunks_do_not_change_the_result():
    torch.manual_seed(0)
    images, texts = torch.randn(2, 9, 4)
    assert recall(images, texts, chunk_rows=2) == recall(images, texts)


def test_sets_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="3 images and 2 texts are not pairs"):
        recall(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="one label for every image and every text"):
        recall(torch.ones(3, 2), torch.ones(2, 2), image_labels=[1, 2], text_labels=[1, 2])
