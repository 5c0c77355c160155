"""easy-VQA as training and test files: questions and captions in LLaVA JSON, and what can be scored without looking.

Pictures of one coloured shape, with a split of their own. Source: the package easy-vqa 1.0 (MIT) by Victor Zhou.
"""

import json
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
CAPTION_PROMPT = "Describe the picture."


def write_easy_vqa(data_folder: Path, out: Path) -> None:
    """Turn the package's data into `out/images/{train,test}/N.png`, `questions_*.json` and `captions_*.json`.

    Images are named in the rows as `train/12.png`, relative to `out/images`.

    Args:
        data_folder: the package's folder, or the `data` folder inside it.
        out: an existing folder.

    Raises:
        FileNotFoundError: a split is not where the package keeps it.
    """
    if (data_folder / "data").is_dir():
        data_folder = data_folder / "data"
    for split in ("train", "test"):
        source = data_folder / split / "questions.json"
        if not source.is_file():
            raise FileNotFoundError(f"easy-VQA keeps its questions in {source}, which is not there.")
        triples = [tuple(row) for row in json.loads(source.read_text(encoding="utf-8"))]
        shutil.copytree(source.parent / "images", out / "images" / split, ignore=_all_but_png)
        _write_rows(out / f"questions_{split}.json", question_rows(triples, split))
        _write_rows(out / f"captions_{split}.json", caption_rows(triples, split))


def question_rows(triples: Sequence[tuple[str, str, int]], split: str) -> list[dict]:
    """`(question, answer, image number)` as LLaVA conversations, in the same order."""
    return [
        _row(f"{split}-question-{i}", f"{split}/{image}.png", question, answer)
        for i, (question, answer, image) in enumerate(triples)
    ]


def caption_rows(triples: Sequence[tuple[str, str, int]], split: str) -> list[dict]:
    """One caption, "blue rectangle", for every image whose questions and answers tell its colour and its shape.

    Only what an answer states counts ("what is the blue shape?" – "rectangle" states both, and so does a yes, or a no
    to a negated question); nothing is concluded by elimination. Rows also carry the bare `caption`.

    Raises:
        ValueError: two answers about one image contradict each other.
    """
    colours: dict[int, set[str]] = defaultdict(set)
    shapes: dict[int, set[str]] = defaultdict(set)
    for question, answer, image in triples:
        stated = _stated_words(question, answer)
        colours[image] |= stated.intersection(COLOURS)
        shapes[image] |= stated.intersection(SHAPES)
        if len(colours[image]) > 1 or len(shapes[image]) > 1:
            raise ValueError(
                f"The answers about {split} image {image} contradict each other: {colours[image] | shapes[image]}"
            )
    rows = []
    for image in sorted(colours):
        if colours[image] and shapes[image]:
            caption = f"{min(colours[image])} {min(shapes[image])}"
            row = _row(f"{split}-caption-{image}", f"{split}/{image}.png", CAPTION_PROMPT, caption)
            rows.append(row | {"caption": caption})
    return rows


def question_kind(question: str, answer: str) -> str:
    """What a question asks for: "yes/no", "colour", "shape", or "other" for rows that are not easy-VQA's."""
    answer, question = normalise(answer), question.lower()
    if answer in ("yes", "no"):
        return "yes/no"
    if answer in COLOURS or "color" in question or "colour" in question:
        return "colour"
    if answer in SHAPES or "shape" in question:
        return "shape"
    return "other"


def normalise(answer: str) -> str:
    """An answer as it is compared: without outer blanks, capitals and full stops at the end."""
    return answer.strip().lower().rstrip(".").rstrip()


def question_and_answer(row: dict) -> tuple[str, str]:
    """The question, without the image marker, and the answer of a LLaVA row with one exchange.

    Raises:
        ValueError: the row does not hold one question and one answer.
    """
    turns = row.get("conversations", [])
    if [turn.get("from") for turn in turns] != ["human", "gpt"]:
        found = [turn.get("from") for turn in turns]
        raise ValueError(f"Row {row.get('id')!r} should hold one human and one gpt turn to be scored, got {found}.")
    return turns[0]["value"].replace("<image>", "").strip(), turns[1]["value"].strip()


def accuracy(answers: Iterable[dict]) -> dict[str, dict[str, float]]:
    """Share of answers that equal the expected one, `{kind: {"accuracy", "right", "count"}}`.

    Kinds are those of `question_kind` that occur, "colour and shape" for both together, and "overall".

    Args:
        answers: dictionaries with `question`, `expected` and `answer`.

    Raises:
        ValueError: there are no answers.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])  # right, count
    for row in answers:
        is_right = normalise(row["answer"]) == normalise(row["expected"])
        kind = question_kind(row["question"], row["expected"])
        together = ["colour and shape"] if kind in ("colour", "shape") else []
        for group in ["overall", kind, *together]:
            counts[group][0] += is_right
            counts[group][1] += 1
    if not counts:
        raise ValueError("accuracy got no answers: an accuracy of nothing is not a number.")
    order = ["overall", "yes/no", "colour and shape", "colour", "shape", "other"]
    return {
        kind: {"accuracy": right / count, "right": right, "count": count}
        for kind, (right, count) in sorted(counts.items(), key=lambda item: order.index(item[0]))
    }


def blind_baseline(train_rows: Sequence[dict], test_rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """What is scored without looking at a picture: always the commonest training answer to the same question.

    A question never seen in training gets the commonest training answer of all. Returns what `accuracy` returns.
    """
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for question, answer in map(question_and_answer, train_rows):
        by_question[question][answer] += 1
        overall[answer] += 1
    if not overall:
        raise ValueError("blind_baseline needs training rows to learn the commonest answers from, got none.")
    return accuracy(
        {
            "question": question,
            "expected": expected,
            "answer": by_question.get(question, overall).most_common(1)[0][0],
        }
        for question, expected in map(question_and_answer, test_rows)
    )


def sample_questions(rows: Sequence[dict], num: int, seed: int) -> list[dict]:
    """`num` rows drawn without replacement, the same for the same seed, in the order of the file.

    Raises:
        ValueError: more rows are asked for than there are.
    """
    if not 0 <= num <= len(rows):
        raise ValueError(f"sample_questions was asked for {num} of {len(rows)} rows: ask for at most {len(rows)}.")
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), num))]


def _stated_words(question: str, answer: str) -> set[str]:
    words = set(re.findall("[a-z]+", question))
    if answer not in ("yes", "no"):
        return words | {answer}
    is_negated = bool(words & {"not", "no"})
    return words if (answer == "yes") != is_negated else set()


def _row(row_id: str, image: str, question: str, answer: str) -> dict:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": row_id, "image": image, "conversations": turns}


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows, indent=0), encoding="utf-8")


def _all_but_png(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".png")]
