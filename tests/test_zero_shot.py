"""Zero-shot classification: prompts from files, class vectors as CLIP and as freeze-align's script make them, scores."""

import json

import pytest
import torch
import torch.nn.functional as F

from vwlmm.zero_shot import class_vectors, classify, labels_by_name, read_prompts

NAMES = ["cat", "dog", "bird"]


def embed(texts):
    """A vector a text, from its letters; of no particular length."""
    rows = [[sum(ord(c) ** (k + 1) % 97 for c in text) for k in range(6)] for text in texts]
    return torch.tensor(rows, dtype=torch.float32)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_single_template_is_that_of_the_script():
    assert read_prompts("single", NAMES) == {name: [f"photo of {name}"] for name in NAMES}


def test_templates_are_read_from_lines_lists_and_sets(tmp_path):
    expected = {name: [f"a {name}.", f"no {name}"] for name in NAMES}
    assert read_prompts(write(tmp_path / "t.txt", "a {}.\n\nno {c}\n"), NAMES) == expected
    assert read_prompts(write(tmp_path / "t.json", ["a {class}.", "no {classname}"]), NAMES) == expected
    sets = write(tmp_path / "sets.json", {"pets": ["a {c}.", "no {c}"], "cars": ["{c}"]})
    assert read_prompts(sets, NAMES, set_name="pets") == expected
    with pytest.raises(ValueError, match=r"holds templates of 2 data sets \(pets, cars\): name one"):
        read_prompts(sets, NAMES)
    with pytest.raises(ValueError, match="expected templates of 'food', found those of pets, cars"):
        read_prompts(sets, NAMES, set_name="food")


def test_descriptions_of_each_class_are_taken_in_the_order_of_the_labels(tmp_path):
    found = read_prompts(
        write(tmp_path / "d.json", {"dog": ["barks"], "bird": ["flies"], "cat": ["purrs", "a cat"]}), NAMES
    )
    assert list(found.items()) == [("cat", ["purrs", "a cat"]), ("dog", ["barks"]), ("bird", ["flies"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cat": ["purrs"], "dog": ["barks"]}, "each of the 3 classes, found none of 1: bird"),
        ({"cat": ["purrs"], "dog": ["barks"], "bird": []}, "a list of sentences for 'bird'"),
        (["a {}", "without place"], "found none in 'without place'"),
        ([], "expected a list of sentences"),
        ({}, "expected a list of templates"),
        ("{broken", "expected JSON"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path / "p.json", content), NAMES)
    with pytest.raises(FileNotFoundError, match="'single' or a file"):
        read_prompts(tmp_path / "nowhere.txt", NAMES)


def test_a_class_vector_is_the_mean_of_unit_embeddings_made_a_unit_again():
    prompts = {"cat": ["purrs", "a cat"], "dog": ["barks"]}
    unit = F.normalize(embed(["purrs", "a cat", "barks"]), dim=-1)
    expected = torch.stack([F.normalize(unit[:2].mean(0), dim=0), unit[2]])
    torch.testing.assert_close(class_vectors(embed, prompts), expected)


def test_the_script_pads_with_the_first_sentence_and_leaves_the_mean_as_it_is():
    prompts = {"cat": ["purrs", "a cat"], "dog": ["barks"]}
    unit = F.normalize(embed(["purrs", "a cat", "barks"]), dim=-1)
    vectors = class_vectors(embed, prompts, renormalise=False, pad_to=5)
    torch.testing.assert_close(vectors, torch.stack([(4 * unit[0] + unit[1]) / 5, unit[2]]))
    assert vectors[0].norm() < 1
    with pytest.raises(ValueError, match="2 sentences, more than the 1 to pad to"):
        class_vectors(embed, prompts, pad_to=1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_equal_a_plain_sort_and_classes_count_once():
    images, classes = random(200, 8), random(12, 8, seed=1)
    labels = [i % 3 if i % 2 else i % 12 for i in range(200)]
    found = classify(images, classes, labels, [str(i) for i in range(12)])
    order = (F.normalize(images, dim=-1) @ classes.T).argsort(dim=1, descending=True)
    hits = [order[i].tolist().index(label) for i, label in enumerate(labels)]
    assert found.top1 == pytest.approx(sum(rank == 0 for rank in hits) / 200)
    assert found.top5 == pytest.approx(sum(rank < 5 for rank in hits) / 200)
    by_class = [
        [rank == 0 for rank, own in zip(hits, labels, strict=True) if own == label] for label in sorted(set(labels))
    ]
    assert found.mean_per_class == pytest.approx(sum(sum(x) / len(x) for x in by_class) / len(by_class))
    assert found.chance == 1 / 12
    assert classify(images, classes, labels, [str(i) for i in range(12)], k_test=5) == found


def test_an_encoder_that_sees_no_difference_scores_0():
    assert classify(torch.ones(4, 8), torch.ones(3, 8), [0, 1, 2, 0], NAMES).top1 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, "got 2 labels for 3 pictures"),
        ({"labels": [0, 3, 1]}, r"3 names \(labels 0 to 2\), but labels name 3"),
        ({"names": ["cat", "cat", "dog"]}, "names 'cat' twice"),
        ({"names": []}, "class list is empty"),
        ({"names": ["cat", "dog"], "labels": [0, 1, 1]}, "2 class names, but 3 class vectors"),
        ({"k_test": 9}, "at most all 3 classes"),
        ({"images": torch.full((3, 8), float("inf"))}, "not finite"),
    ],
)
def test_a_class_list_that_does_not_match_is_refused(change, message):
    given = {"images": random(3, 8), "classes": random(3, 8), "labels": [0, 1, 2], "names": NAMES} | change
    with pytest.raises(ValueError, match=message):
        classify(**given)


def test_labels_given_as_names_must_be_in_the_list():
    assert labels_by_name(["dog", "cat"], NAMES) == [1, 0]
    with pytest.raises(ValueError, match="1 labels are not in the class list of 3: 'cow'"):
        labels_by_name(["dog", "cow"], NAMES)
