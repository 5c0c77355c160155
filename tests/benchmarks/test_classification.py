"""Zero-shot classification through `vwlmm score`: layouts of the sets, class vectors, the three forms of an answer."""

import json
import sys

import pytest
import torch
from PIL import Image
from scoring import details_by_id, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.class_vectors import class_vectors, sentences
from vwlmm.cli import main


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def questions_of(benchmark, folder):
    return {q.id: q.record["label"] for q in benchmark.read(benchmark.files(folder))}


def make_food101(folder):
    lines(folder / "meta/classes.txt", "apple_pie", "baby_back_ribs")
    lines(folder / "meta/test.txt", "baby_back_ribs/12", "apple_pie/7")
    (folder / "images").mkdir()
    return ["apple pie", "baby back ribs"], {"baby_back_ribs/12.jpg": 1, "apple_pie/7.jpg": 0}


def make_pets(folder):
    lines(
        folder / "annotations/test.txt",
        "#Image CLASS-ID SPECIES BREED ID",
        "Abyssinian_201 1 1 1",
        "great_dane_3 2 2 1",
    )
    (folder / "images").mkdir()
    return ["Abyssinian", "great dane"], {"Abyssinian_201.jpg": 0, "great_dane_3.jpg": 1}


def make_aircraft(folder):
    lines(folder / "data/variants.txt", "707-320", "Cessna 172")
    lines(folder / "data/images_variant_test.txt", "1514522 Cessna 172", "0747566 707-320")
    (folder / "data/images").mkdir()
    return ["707-320", "Cessna 172"], {"1514522.jpg": 1, "0747566.jpg": 0}


def make_dtd(folder):
    lines(folder / "labels/test1.txt", "dotted/dotted_1.jpg", "banded/banded_2.jpg")
    (folder / "images").mkdir()
    return ["banded", "dotted"], {"dotted/dotted_1.jpg": 1, "banded/banded_2.jpg": 0}


def make_cub(folder):
    lines(folder / "classes.txt", "1 001.Black_footed_Albatross", "2 002.Laysan_Albatross")
    lines(folder / "images.txt", "1 001.Black_footed_Albatross/a.jpg", "2 002.Laysan_Albatross/b.jpg", "3 c/c.jpg")
    lines(folder / "image_class_labels.txt", "1 1", "2 2", "3 1")
    lines(folder / "train_test_split.txt", "1 0", "2 0", "3 1")
    (folder / "images").mkdir()
    return ["Black footed Albatross", "Laysan Albatross"], {
        "001.Black_footed_Albatross/a.jpg": 0,
        "002.Laysan_Albatross/b.jpg": 1,
    }


def make_imagenet(folder):
    lines(folder / "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius auratus")
    lines(folder / "LOC_val_solution.csv", "ImageId,PredictionString", "ILSVRC2012_val_00000009,n01443537 1 2 3 4 ")
    (folder / "val").mkdir()
    return ["tench", "goldfish"], {"ILSVRC2012_val_00000009.JPEG": 1}


def make_sun397(folder):
    lines(folder / "ClassName.txt", "/a/abbey", "/a/apartment_building/outdoor")
    picture(folder / "a/abbey/x.jpg")
    picture(folder / "a/apartment_building/outdoor/y.jpg")
    return ["abbey", "apartment building outdoor"], {"a/abbey/x.jpg": 0, "a/apartment_building/outdoor/y.jpg": 1}


def make_imagenetv2(folder):
    for name in ("0", "2", "10"):
        picture(folder / name / "x.jpeg")
    return ["0", "2", "10"], {"0/x.jpeg": 0, "2/x.jpeg": 1, "10/x.jpeg": 2}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("food101", make_food101),
        ("pets", make_pets),
        ("aircraft", make_aircraft),
        ("dtd", make_dtd),
        ("cub", make_cub),
        ("imagenet", make_imagenet),
        ("sun397", make_sun397),
        ("imagenetv2", make_imagenetv2),
    ],
)
def test_a_set_is_read_as_it_is_published(tmp_path, name, make):
    folder = tmp_path / name
    folder.mkdir()
    names, labels = make(folder)
    benchmark = get_benchmark("classification", set=name)
    assert questions_of(benchmark, tmp_path) == labels
    assert benchmark.class_names == names


@pytest.fixture
def pets(tmp_path):
    lines(tmp_path / "test.txt", "cat_1 1 1 1", "cat_2 1 1 1", "cat_3 1 1 1", "dog_1 2 2 1")
    return tmp_path / "test.txt"


def score(tmp_path, pets, rows, *more):
    answers = write_lines(tmp_path / "a.jsonl", rows)
    return run_score(tmp_path, "classification", pets, answers, "--option", "set=pets", *more)


NAMES = ("cat_1.jpg", "cat_2.jpg", "cat_3.jpg", "dog_1.jpg")


@pytest.mark.parametrize(
    "predictions",
    [
        [{"scores": s} for s in ([2.0, 1.0], [2.0, 1.0], [0.0, 1.0], [0.0, 1.0])],
        [{"scores": s} for s in ({"0": 2.0, "1": 1.0}, {"0": 1.0}, {"1": 1.0}, {"1": 0.5, "0": 0.1})],
        [{"label": label} for label in (0, 0, 1, 1)],
        [{"text": text} for text in ("cat", "cat", "dog", "dog")],
    ],
)
def test_all_forms_of_an_answer_give_the_same_accuracy(tmp_path, pets, predictions):
    rows = [{"question_id": name, **found} for name, found in zip(NAMES, predictions, strict=True)]
    metrics = score(tmp_path, pets, rows)["metrics"]
    assert metrics["top1"] == 0.75
    assert metrics["mean_per_class"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_tie_is_wrong(tmp_path, pets):
    result = score(tmp_path, pets, [{"question_id": name, "scores": [0.5, 0.5]} for name in NAMES])
    assert result["metrics"]["top1"] == 0.0
    assert details_by_id(result)["cat_1.jpg"]["rank"] == 2
    assert result["metrics"]["top5"] == 1.0


class Fixed:
    """Embeds by a table; what is not in it lies far from everything else."""

    def __init__(self, table):
        self.table = table
        self.asked = []

    def embed_images(self, images):
        return torch.stack([self.table[str(image)] for image in images])

    def embed_texts(self, texts):
        self.asked += texts
        return torch.stack([self.table.get(text, torch.tensor([0.0, 0.0, 1.0])) for text in texts])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_nearest_class_text_is_the_answer(tmp_path, pets, batch_size):
    unit = torch.eye(3)
    embedder = Fixed({"photo of cat": unit[0], "photo of dog": unit[1], **{n: unit[int("dog" in n)] for n in NAMES}})
    benchmark = get_benchmark("classification", set="pets")
    answers = list(benchmark.answer_all(benchmark.read(Files((pets,))), embedder, batch_size))
    assert embedder.asked[:2] == ["photo of cat", "photo of dog"]
    assert score(tmp_path, pets, answers)["metrics"]["top1"] == 1.0


def test_only_the_best_five_classes_are_written_and_those_that_tie_with_the_fifth(tmp_path):
    lines(tmp_path / "test.txt", *(f"c{i}_1 {i + 1} 1 1" for i in range(9)))
    benchmark = get_benchmark("classification", set="pets")
    questions = benchmark.read(Files((tmp_path / "test.txt",)))
    texts = torch.nn.functional.normalize(torch.tensor([[1.0, i / 4] for i in (0, 1, 2, 3, 4, 5, 5, 6, 7)]), dim=-1)
    table = {f"photo of c{i}": texts[i] for i in range(9)} | {q.id: torch.tensor([1.0, 0.0]) for q in questions}
    first = next(iter(benchmark.answer_all(questions, Fixed(table), 4)))
    assert list(first["scores"]) == ["0", "1", "2", "3", "4"]
    alike = {text: texts[0] for text in table if text.startswith("photo")} | {q.id: texts[0] for q in questions}
    assert len(next(iter(benchmark.answer_all(questions, Fixed(alike), 4)))["scores"]) == 9


def test_a_class_vector_is_the_unit_mean_of_unit_vectors_or_the_released_padded_mean():
    table = {"a": [3.0, 0.0], "b": [0.0, 1.0], "c": [0.0, 2.0], "d": [1.0, 0.0], "e": [0.0, 1.0]}
    embed = lambda texts: torch.tensor([table[text] for text in texts])  # noqa: E731
    groups = [["a", "b"], ["c", "d", "e"]]
    mean = class_vectors(embed, groups, "mean")
    assert torch.allclose(mean.norm(dim=-1), torch.ones(2))
    assert torch.allclose(mean[0], torch.tensor([0.5, 0.5]).div(0.5**0.5))
    released = class_vectors(embed, groups, "released")
    assert torch.allclose(released[0], torch.tensor([2 / 3, 1 / 3]))  # a, b and a again
    assert torch.allclose(released[1], torch.tensor([1 / 3, 2 / 3]))


def test_templates_come_from_a_file_as_list_or_per_class(tmp_path):
    names = ["cat", "dog"]
    listed = write(tmp_path / "t.json", ["a photo of a {}.", "art of {c}"])
    assert sentences(names, "file", listed, "pets")[1] == ["a photo of a dog.", "art of dog"]
    per_class = write(tmp_path / "d.json", {"cat": ["has whiskers"], "dog": ["barks", "wags"]})
    assert sentences(names, "file", per_class, "pets") == [["has whiskers"], ["barks", "wags"]]
    with pytest.raises(ValueError, match="field bird: expected a list of sentences"):
        sentences([*names, "bird"], "file", per_class, "pets")
    with pytest.raises(ValueError, match="expected a list of templates"):
        sentences(names, "file", write(tmp_path / "bad.json", ["no place"]), "pets")


def test_clips_templates_are_read_from_the_users_packages(tmp_path, monkeypatch):
    with pytest.raises(ImportError, match="pip install --no-deps clip_benchmark"):
        sentences(["cat"], "clip", None, "no_such_set")
    folder = tmp_path / "clip_benchmark"
    (folder / "datasets").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('needs torchvision')")
    write(folder / "datasets" / "en_zeroshot_classification_templates.json", {"pets": ["a photo of a {c}, a pet."]})
    monkeypatch.syspath_prepend(tmp_path)
    assert sentences(["cat"], "clip", None, "pets") == [["a photo of a cat, a pet."]]
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise ImportError('needs torchvision')")
    code = "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a bad photo of a {c}.', lambda c: f'art of {c}')"
    (tmp_path / "open_clip" / "zero_shot_metadata.py").write_text(code)
    assert sentences(["tench"], "clip", None, "imagenet") == [["a bad photo of a tench.", "art of tench"]]
    assert "open_clip" not in sys.modules


def test_class_names_can_be_given(tmp_path, pets):
    benchmark = get_benchmark("classification", set="pets", class_names=str(write(tmp_path / "n.json", ["Cat", "Dog"])))
    assert benchmark.read(Files((pets,)))[3].record["class"] == "Dog"
    wrong = get_benchmark("classification", set="pets", class_names=str(lines(tmp_path / "n.txt", "Cat", "Dog", "Cow")))
    with pytest.raises(ValueError, match="expected 2 class names as the labels have, found 3"):
        wrong.read(Files((pets,)))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"scores": [1.0]}, "field scores: expected 2 numbers"),
        ({"scores": {"2": 1.0}}, "field scores: expected class numbers from 0 to 1, found '2'"),
        ({"scores": [1.0, None]}, "field scores[1]: expected a finite number"),
        ({"label": 2}, "field label: expected a class number from 0 to 1, found 2"),
        ({"text": "bird"}, "field text: expected one of 2 class names, found 'bird'"),
        ({}, "field scores: expected a list"),
    ],
)
def test_a_bad_line_is_named(capsys, tmp_path, pets, found, message):
    rows = [{"question_id": name, "label": 0} for name in NAMES[:3]] + [{"question_id": NAMES[3], **found}]
    answers = write_lines(tmp_path / "a.jsonl", rows)
    command = ["score", "classification", "--option", "set=pets", "--annotations", str(pets), "--answers", str(answers)]
    assert main(command) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{answers}, line 4" in told.err
    assert message in told.err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["cat_1 x 1 1"], "test.txt, line 1: expected a class number, found 'x'"),
        (["cat_1 1 1 1", "dog_1 1 1 1"], "line 2: expected one name a class, found dog and cat"),
        (["cat_1 1 1 1", "dog_1 3 1 1"], "expected pictures of each class from 1 on"),
        (["cat_1 1 1 1", "cat_1 1 1 1"], "line 2: expected each picture once"),
        ([], "expected one entry a line, found an empty file"),
    ],
)
def test_a_wrong_label_file_is_refused(tmp_path, rows, message):
    lines(tmp_path / "test.txt", *rows)
    with pytest.raises(ValueError) as problem:
        get_benchmark("classification", set="pets").read(Files((tmp_path / "test.txt",)))
    assert message in str(problem.value)


def test_folders_are_scored_with_the_folder_of_pictures(tmp_path):
    for name in ("cat/1.jpg", "dog/2.jpg"):
        picture(tmp_path / "pictures" / name)
    rows = [{"question_id": "cat/1.jpg", "text": "cat"}, {"question_id": "dog/2.jpg", "text": "cat"}]
    answers, out = write_lines(tmp_path / "a.jsonl", rows), tmp_path / "s.json"
    command = ["score", "classification", "--images", tmp_path / "pictures", "--answers", answers, "--out", out]
    assert main([str(part) for part in command]) == 0
    assert json.loads(out.read_text())["metrics"]["top1"] == 0.5
