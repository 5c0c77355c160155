"""Image-text retrieval: every picture against every caption of the set, both ways, by R@1, R@5 and R@10.

Protocol: freeze-align (arXiv 2409.19425) and CLIP: all pairs, cosine, nothing trained on the set.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .benchmark import Answer, Files, Question, Score
from .captioning import only_file
from .coco_captions import karpathy_pictures, sentences_of
from .engines import EmbedBenchmark, Embedder
from .official_files import Record, find_files, list_records, read_json
from .retrieval_metrics import KS, image_ranks, recalls, text_ranks

# The files of freeze-align's script strip these, turn hyphens and slashes to blanks and keep 30 words.
_MARKS = re.compile(r"[,.'!?\"()*#:;~]")


def clean_caption(caption: str, num_words: int = 30) -> str:
    """A caption as freeze-align's evaluation reads it: lower case, no marks, the first words only."""
    text = _MARKS.sub("", caption.lower()).replace("-", " ").replace("/", " ")
    return " ".join(text.split()[:num_words])


class Retrieval(EmbedBenchmark):
    """One question a picture; its `record` has its own `captions`. The captions of all questions, in order, are the texts.

    A line of the answers file has a picture's id and either `scores`, its similarity to every text of the set, in the
    file's order (so many numbers as there are captions), or `text_ranks` and `image_ranks`: for each of its captions, the
    caption's rank for this picture (its other captions left out) and the picture's rank for the caption; 1 is best.
    """

    independent = False
    answer_fields = ("scores", "text_ranks")
    answer_kind = list
    # What the two directions are called in the figures: by picture, by text.
    directions: ClassVar[tuple[str, str]] = ("image_to_text", "text_to_image")
    main_direction: ClassVar[int] = 0  # which of them the papers print first

    def texts_of(self, question: Question) -> list[str]:
        """The picture's captions as they are embedded."""
        return list(question.record["captions"])

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """By the picture's id, its file name or its number; the line is checked here, where its place is known."""
        names = {name: question.id for question in questions for name in question.record["names"]}
        captions = {question.id: len(question.record["captions"]) for question in questions}
        total = sum(captions.values())

        def match(answer: Answer) -> str | None:
            name = names.get(str(answer.get("question_id")))
            if name is not None and "scores" in answer:
                check_scores(answer["scores"], total, "captions of the set")
            elif name is not None:
                for field, most in (("text_ranks", total), ("image_ranks", len(questions))):
                    _check_ranks(answer.get(field), field, captions[name], most)
            return name

        return match

    def answer_all(self, questions: Sequence[Question], embedder: object, batch_size: int) -> Iterator[dict[str, Any]]:
        """Embeds all pictures and texts, then writes ranks: a line of similarities would have 25,000 numbers for COCO."""
        assert isinstance(embedder, Embedder)
        images = in_batches(embedder.embed_images, [question.images[0] for question in questions], batch_size)
        texts = in_batches(
            embedder.embed_texts, [text for question in questions for text in self.texts_of(question)], batch_size
        )
        owners = _owners(questions)
        similarity = images @ texts.T  # [images, texts]
        found = zip(questions, text_ranks(similarity, owners), image_ranks(similarity, owners), strict=True)
        for question, of_texts, of_image in found:
            yield {"question_id": question.id, "text_ranks": of_texts, "image_ranks": of_image}

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """R@K both ways, the mean of each way and of both."""
        ranks = self._ranks(questions, [answers[question.id] for question in questions])
        details = [
            {"question_id": question.id, "text_ranks": of_texts, "image_ranks": of_image}
            for question, (of_texts, of_image) in zip(questions, ranks, strict=True)
        ]
        by_image, by_text = self.directions
        both = [
            recalls([min(of_texts) for of_texts, _ in ranks], by_image),
            recalls([rank for _, of_image in ranks for rank in of_image], by_text),
        ]
        metrics = both[self.main_direction] | both[1 - self.main_direction]
        for name in self.directions:
            metrics[f"{name}/R_mean"] = sum(metrics[f"{name}/R@{k}"] for k in KS) / len(KS)
        metrics["R_mean"] = sum(metrics[f"{name}/R_mean"] for name in self.directions) / 2
        num_texts = sum(len(question.record["captions"]) for question in questions)
        note = f"{len(questions)} pictures, {num_texts} texts; a tie counts against the model"
        return Score(metrics, details, [note])

    def _ranks(self, questions: Sequence[Question], answers: Sequence[Answer]) -> list[tuple[list[int], list[int]]]:
        with_scores = sum("scores" in answer for answer in answers)
        if with_scores not in (0, len(answers)):
            raise ValueError(
                f"{self.name}: expected every line with scores or every line with text_ranks and image_ranks; "
                f"found {with_scores} of {len(answers)} with scores."
            )
        if not with_scores:
            return [(answer["text_ranks"], answer["image_ranks"]) for answer in answers]
        similarity = torch.tensor([answer["scores"] for answer in answers], dtype=torch.float64)
        owners = _owners(questions)
        return list(zip(text_ranks(similarity, owners), image_ranks(similarity, owners), strict=True))


class FileRetrieval(Retrieval):
    """Reads Karpathy's file (part `split`), or a list of `image` and `caption` as ALBEF and freeze-align have it."""

    options: ClassVar[Mapping[str, Any]] = {
        "split": "test",
        "captions_per_image": None,  # the first so many; None: all that the file has
        "clean_captions": False,  # True: as freeze-align's script embeds them
    }
    dataset: ClassVar[str]

    def read(self, files: Files) -> list[Question]:
        """One question a picture, in the file's order."""
        path = only_file(files, self.name, f"Karpathy's dataset_{self.dataset}.json or a list of image and caption")
        document = read_json(path)
        if isinstance(document, list):
            found = [(r, r.get("image", str), _caption_list(r)) for r in list_records(path, document, None, "pictures")]
        else:
            records = karpathy_pictures(path, document, self.dataset, self.settings["split"])
            found = [(r, _karpathy_name(r), sentences_of(r)) for r in records]
        questions: dict[str, Question] = {}
        for record, image, captions in found:
            if image in questions:
                raise record.error("image" if "image" in record.value else "filename", f"{image} is there twice")
            questions[image] = self._question(record, image, captions[: self.settings["captions_per_image"]])
        return list(questions.values())

    def texts_of(self, question: Question) -> list[str]:
        """As written, or cleaned when the settings say so."""
        captions = super().texts_of(question)
        return [clean_caption(caption) for caption in captions] if self.settings["clean_captions"] else captions

    def _question(self, record: Record, image: str, captions: list[str]) -> Question:
        names = {image, Path(image).name}
        if "cocoid" in record.value:
            names.add(str(record.get("cocoid", int)))
        return Question(
            id=image, messages=(), images=(image,), record={"captions": captions, "names": names}, where=record.where
        )


class COCORetrieval(FileRetrieval):
    """COCO's 5,000 test pictures of Karpathy's split."""

    name = "coco_retrieval"
    title = "COCO retrieval"
    dataset = "coco"
    published = {"freeze-align DINOv2-ARL": 60.1, "freeze-align DINOv2-MpNet": 58.0, "CLIP-L": 56.3}

    def files(self, data: Path) -> Files:
        """Karpathy's file and the folder that holds val2014."""
        annotations, pictures = find_files(data, self.name, "dataset_coco.json", "val2014")
        return Files((annotations,), (), pictures.parent)


class Flickr30kRetrieval(FileRetrieval):
    """Flickr30k's 1,000 test pictures of Karpathy's split."""

    name = "flickr30k_retrieval"
    title = "Flickr30k retrieval"
    dataset = "flickr30k"
    published = {"freeze-align DINOv2-ARL": 87.5, "freeze-align DINOv2-MpNet": 84.6, "CLIP-L": 85.2}

    def files(self, data: Path) -> Files:
        """Karpathy's file and the folder of pictures."""
        annotations, pictures = find_files(data, self.name, "dataset_flickr30k.json", "flickr30k-images")
        return Files((annotations,), (), pictures)


def in_batches(embed: Callable[[Sequence[Any]], Tensor], items: Sequence[Any], batch_size: int) -> Tensor:
    """What `embed` gives for all items, some at a time: `[items, dim]`, in fp32 on the CPU."""
    parts = [embed(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
    return torch.cat([part.detach().float().cpu() for part in parts])


def check_scores(scores: Any, count: int, what: str) -> None:
    """Checks a list of similarities of an answers file.

    Raises:
        ValueError: it is not a list of `count` finite numbers.
    """
    if not isinstance(scores, list) or len(scores) != count:
        found = f"a list of {len(scores)}" if isinstance(scores, list) else repr(scores)
        raise ValueError(f"field scores: expected {count} numbers, one for each of the {what}; found {found}")
    for index, value in enumerate(scores):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise ValueError(f"field scores[{index}]: expected a finite number, found {value!r}")


def _check_ranks(ranks: Any, field: str, count: int, most: int) -> None:
    if not isinstance(ranks, list) or len(ranks) != count:
        raise ValueError(f"field {field}: expected {count} ranks, one for each caption of the picture; found {ranks!r}")
    for index, rank in enumerate(ranks):
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
            raise ValueError(f"field {field}[{index}]: expected a rank from 1 to {most}, found {rank!r}")


def _owners(questions: Sequence[Question]) -> Tensor:
    """The number of the picture that each text belongs to, `[texts]`."""
    counts = torch.tensor([len(question.record["captions"]) for question in questions])
    return torch.arange(len(questions)).repeat_interleave(counts)


def _caption_list(record: Record) -> list[str]:
    captions = record.get("caption", list, str)
    captions = [captions] if isinstance(captions, str) else captions
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise record.error("caption", "expected a list of captions")
    return captions


def _karpathy_name(record: Record) -> str:
    return "/".join(record.value[name] for name in ("filepath", "filename") if name in record.value)
