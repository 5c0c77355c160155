"""Benchmarks of captions, dialogues, retrieval, classes, masks and arithmetic, asked of a tiny model through the runner."""

import json

import numpy as np
import pytest
from PIL import Image

from vwlmm.benchmarks import get_benchmark
from vwlmm.cli import main
from vwlmm.evaluation.runner import evaluate
from vwlmm.evaluation.settings import EvaluationConfig

COLOURS = {1: (220, 30, 30), 2: (30, 200, 40), 3: (20, 40, 230)}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def show(folder, name, number):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), COLOURS[number]).save(folder / name)


def coco(data):
    pictures = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{n:012d}.jpg",
            "cocoid": n,
            "split": "test",
            "sentences": [{"raw": f"A shape {n}"}, {"raw": "It is red"}],
        }
        for n in COLOURS
    ]
    write(data / "dataset_coco.json", {"dataset": "coco", "images": pictures})
    for n in COLOURS:
        show(data, f"val2014/COCO_val2014_{n:012d}.jpg", n)


def nocaps(data):
    write(
        data / "nocaps_val_4500_captions.json",
        {
            "images": [{"id": n, "file_name": f"{n}.jpg", "domain": "in-domain"} for n in COLOURS],
            "annotations": [{"image_id": n, "id": n, "caption": f"It is {n}"} for n in COLOURS],
        },
    )
    for n in COLOURS:
        show(data, f"nocaps_images/{n}.jpg", n)


def fewshot(data):
    for split, begin in (("val2014", 0), ("train2014", 100)):
        questions = [{"image_id": begin + n, "question": "What is it?", "question_id": begin + n} for n in COLOURS]
        annotations = [
            {
                "question_id": begin + n,
                "image_id": begin + n,
                "answer_type": "other",
                "multiple_choice_answer": "red",
                "answers": [{"answer": "red", "answer_id": i} for i in range(10)],
            }
            for n in COLOURS
        ]
        write(data / f"v2_OpenEnded_mscoco_{split}_questions.json", {"data_subtype": split, "questions": questions})
        write(data / f"v2_mscoco_{split}_annotations.json", {"annotations": annotations})
        for n in COLOURS:
            show(data, f"{split}/COCO_{split}_{begin + n:012d}.jpg", n)


def visdial(data):
    rounds = [{"question": 0, "answer": 1, "answer_options": [0, 1, 2], "gt_index": 1}] * 2
    dialogs = [{"image_id": n, "caption": "a shape", "dialog": rounds} for n in COLOURS]
    texts = {"questions": ["is it red"], "answers": ["green", "it is red", "blue or red"], "dialogs": dialogs}
    write(data / "visdial_1.0_val.json", {"split": "val2018", "data": texts})
    dense = [{"image_id": n, "round_id": 2, "gt_relevance": [0.5, 1.0, 0.0]} for n in COLOURS]
    write(data / "visdial_1.0_val_dense_annotations.json", dense)
    for n in COLOURS:
        show(data, f"VisualDialog_val2018/VisualDialog_val2018_{n:012d}.jpg", n)


def classes(data):
    for n, name in enumerate(("red", "green", "blue"), start=1):
        show(data, f"folders/{name}/x.png", n)


def voc(data):
    root = data / "VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "SegmentationClass").mkdir()
    (root / "ImageSets/Segmentation/val.txt").write_text("1\n2\n3\n")
    for n in COLOURS:
        show(root, f"JPEGImages/{n}.jpg", n)
        mask = Image.fromarray(np.full((30, 40), n, dtype=np.uint8), mode="P")
        mask.putpalette([value % 256 for value in range(768)])
        mask.save(root / f"SegmentationClass/{n}.png")


def triples(data):
    data.mkdir(parents=True, exist_ok=True)
    for n in COLOURS:
        show(data, f"{n}.png", n)
    rows = [
        {"plus": ["1.png", "2.png"], "minus": ["3.png"], "target": "red"},
        {"plus": ["1.png"], "minus": [], "target": "it"},
    ]
    (data / "triples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


CASES = {
    "coco_captions": (coco, {"tokenizer": "own"}, "CIDEr-D"),
    "nocaps": (nocaps, {"tokenizer": "own"}, "CIDEr-D/in-domain"),
    "coco_retrieval": (coco, {}, "text_to_image/R@1"),
    "fewshot_vqav2": (fewshot, {"shots": 2}, "accuracy"),
    "visdial": (visdial, {}, "NDCG"),
    "visdial_retrieval": (visdial, {}, "dialogue_to_image/R@1"),
    "classification": (classes, {}, "top1"),
    "voc_segmentation": (voc, {}, "mIoU"),
    "arithmetic": (triples, {}, "R@5"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_gives_the_figures_that_its_answers_file_gives(tmp_path, loaded, name):
    make, options, figure = CASES[name]
    make(tmp_path / "data")
    benchmark = get_benchmark(name, **options)
    files = benchmark.files(tmp_path / "data")
    config = EvaluationConfig(batch_size=2, max_new_tokens=4)
    result = evaluate(loaded, benchmark, files, tmp_path / "run", config)
    assert figure in result.metrics
    answers = tmp_path / "run" / "answers.jsonl"
    command = ["score", name, "--answers", answers, "--images", files.images, "--out", tmp_path / "score.json"]
    command += ["--annotations", *files.annotations] if files.annotations else []
    command += ["--questions", *files.questions] if files.questions else []
    command += ["--option", *(f"{key}={value}" for key, value in options.items())] if options else []
    assert main([str(part) for part in command]) == 0
    assert json.loads((tmp_path / "score.json").read_text())["metrics"] == result.metrics
