"""easy-VQA's held-out pictures in the official formats of VQAv2, POPE, COCO captions and Karpathy's retrieval split.

So the readers and scorers of the real benchmarks can be tried, whole, without any download. Same files for the same seed.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vwlmm.demo.easy_vqa import COLOURS, SHAPES, question_and_answer, question_kind, sample_questions

SEED = 0
NUM_QUESTIONS = 600  # of 9,673
NUM_PICTURES = 100  # of 880 with a known colour and shape: for POPE, and as many others for captions
NUM_POPULAR = 6  # POPE's popular things: the commonest of 24
QUESTIONS_FILE, ANNOTATIONS_FILE = "vqa_questions.json", "vqa_annotations.json"
POPE_SUBSETS = ("random", "popular", "adversarial")
CAPTIONS_FILE, RETRIEVAL_FILE = "captions.json", "dataset_retrieval.json"


def write_benchmark_files(easy_vqa: Path, out: Path) -> None:
    """Writes all files into the existing folder `out`; `easy_vqa` is the prepared folder with `questions_test.json`."""
    questions = json.loads((easy_vqa / "questions_test.json").read_text(encoding="utf-8"))
    captions = json.loads((easy_vqa / "captions_test.json").read_text(encoding="utf-8"))
    drawn = random.Random(SEED).sample(captions, min(2 * NUM_PICTURES, len(captions)))
    half = len(drawn) // 2
    asked, annotated = vqa_files(sample_questions(questions, min(NUM_QUESTIONS, len(questions)), SEED))
    _write(out / QUESTIONS_FILE, asked)
    _write(out / ANNOTATIONS_FILE, annotated)
    for subset, lines in pope_lines(drawn[:half], captions).items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (out / f"coco_pope_{subset}.json").write_text(text, encoding="utf-8")
    _write(out / CAPTIONS_FILE, caption_file(drawn[half:]))
    _write(out / RETRIEVAL_FILE, retrieval_file(captions))


def vqa_files(rows: Sequence[dict]) -> tuple[dict[str, Any], dict[str, Any]]:
    """LLaVA rows as VQAv2's questions and annotations; the one answer of easy-VQA stands for all ten annotators."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        question, answer = question_and_answer(row)
        kind = question_kind(question, answer)
        place = {"image_id": image_number(row["image"]), "question_id": number}
        questions.append({**place, "question": question})
        annotations.append(
            {
                **place,
                "question_type": kind,
                "answer_type": "yes/no" if kind == "yes/no" else "other",
                "multiple_choice_answer": answer,
                "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
            }
        )
    about = {"info": {"description": "easy-VQA, held-out questions"}, "data_subtype": "test", "data_type": "easy-vqa"}
    return (
        {**about, "task_type": "Open-Ended", "questions": questions},
        {**about, "annotations": annotations},
    )


def pope_lines(pictures: Sequence[dict], everything: Sequence[dict]) -> dict[str, list[dict[str, Any]]]:
    """POPE's three label files: for each picture what is there, and something that is not.

    What is not there is drawn from all other things (random), from the commonest of them (popular), or from those that
    have the picture's colour or its shape (adversarial: what a model that looks at half of it takes for real).
    """
    common = [caption for caption, _ in Counter(row["caption"] for row in everything).most_common()]
    files: dict[str, list[dict[str, Any]]] = {}
    for subset in POPE_SUBSETS:
        draw = random.Random(f"{SEED} {subset}")
        lines: list[dict[str, Any]] = []
        for row in pictures:
            others = [caption for caption in common if caption != row["caption"]]
            if subset == "popular":
                others = others[:NUM_POPULAR]
            elif subset == "adversarial":
                others = [caption for caption in others if set(caption.split()) & set(row["caption"].split())]
            for thing, label in ((row["caption"], "yes"), (draw.choice(others), "no")):
                text = f"Is there a {thing} in the image?"
                lines.append({"question_id": len(lines) + 1, "image": row["image"], "text": text, "label": label})
        files[subset] = lines
    return files


def caption_file(rows: Sequence[dict]) -> dict[str, Any]:
    """COCO's captions file; the derived caption in three wordings, because CIDEr-D wants up to four words in a row."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in rows:
        number = image_number(row["image"])
        images.append({"id": number, "file_name": row["image"]})
        for wording in ("a {}", "a picture of a {}", "there is a {} in the picture"):
            caption = wording.format(row["caption"])
            annotations.append({"id": len(annotations), "image_id": number, "caption": caption})
    return {"images": images, "annotations": annotations}


def retrieval_file(rows: Sequence[dict]) -> dict[str, Any]:
    """Karpathy's file: one picture of every colour and shape with its caption, so that exactly one caption is right."""
    first = {row["caption"]: row for row in reversed(rows)}
    images: list[dict[str, Any]] = []
    for caption in (f"{colour} {shape}" for colour in COLOURS for shape in SHAPES):
        if caption not in first:
            continue
        sentence = {
            "raw": f"a {caption}",
            "tokens": f"a {caption}".split(),
            "sentid": len(images),
            "imgid": len(images),
        }
        images.append(
            {
                "filepath": "test",
                "filename": Path(first[caption]["image"]).name,
                "cocoid": image_number(first[caption]["image"]),
                "imgid": len(images),
                "split": "test",
                "sentids": [len(images)],
                "sentences": [sentence],
            }
        )
    return {"images": images, "dataset": "easy-vqa"}


def image_number(name: str) -> int:
    """`test/12.png` → 12."""
    return int(Path(name).stem)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
