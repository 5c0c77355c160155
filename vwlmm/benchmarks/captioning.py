"""What the captioning benchmarks share: the prompt, CIDEr-D, BLEU, ROUGE-L and CLIP-S, and the submission's list.

Prompt and metrics as in VLAP (arXiv 2404.09632); scoring as the COCO caption server does it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmark import Answer, Benchmark, Files, Question, Score
from .caption_metrics import bleu, cider_d, rouge_l
from .java_tokenizer import has_java_tokenizer, java_tokens
from .official_files import Record, list_records, mean
from .ptb_tokenizer import ptb_tokens

OPTIONS = {
    "prompt": "A picture of ",  # VLAP's prefix, with its blank; what the model writes goes on from it
    "format": "completion",  # or "chat": the prompt is a user's turn, as for LLaVA
    "tokenizer": "auto",  # "java" (the server's own), "own", or "auto": Java when it is there
    "clip": None,  # folder or hub id of a CLIP model: adds CLIP-S and RefCLIP-S, which need the pictures
}


class Captioning(Benchmark):
    """One question a picture; its `record` has the human captions as `references`.

    A result list (`image_id`, `caption`) is read as well as an answers file (`question_id`, `text`).
    """

    id_fields = ("question_id", "image_id")
    answer_fields = ("text", "caption")
    options = OPTIONS

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, known in (("format", ("completion", "chat")), ("tokenizer", ("auto", "java", "own"))):
            if self.settings[name] not in known:
                raise ValueError(f"{self.name}: expected {name} {' or '.join(known)}, found {self.settings[name]!r}.")
        self.completion = self.settings["format"] == "completion"
        self.images: Path | None = None

    def messages(self) -> list[dict[str, Any]]:
        """The turn that asks for a caption: picture, then prompt."""
        prompt = self.settings["prompt"]
        text = prompt if self.completion else "\n" + prompt
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """CIDEr-D first; details have the tokens that were counted."""
        if not all(question.record["references"] for question in questions):
            return Score({}, notes=["captions of the test split are not public: upload the submission file"])
        tokenizer = self._tokenizer()
        references = [question.record["references"] for question in questions]
        captions = [answers[question.id]["text"] for question in questions]
        tokens, reference_tokens = tokenise(captions, references, tokenizer)
        ciders, rouges = cider_d(tokens, reference_tokens), rouge_l(tokens, reference_tokens)
        metrics = {"CIDEr-D": mean(ciders)}
        metrics |= {f"BLEU-{n}": value for n, value in enumerate(bleu(tokens, reference_tokens), start=1)}
        metrics["ROUGE-L"] = mean(rouges)
        details = [
            {"question_id": question.id, "text": text, "tokens": words, "CIDEr-D": cider, "ROUGE-L": rouge}
            for question, text, words, cider, rouge in zip(questions, captions, tokens, ciders, rouges, strict=True)
        ]
        notes = [
            f"tokens: {'Stanford PTBTokenizer 3.4.1 (Java)' if tokenizer == 'java' else 'our own PTB-like tokenizer'}"
        ]
        if self.settings["clip"] is not None:
            metrics |= self._clip(questions, captions, details)
            notes.append(f"CLIP-S and RefCLIP-S by {self.settings['clip']}; papers use CLIP ViT-B/32")
        metrics |= self.more_metrics(questions, details, tokens, reference_tokens)
        return Score(metrics, details, [*notes, *self.notes(questions)])

    def more_metrics(
        self,
        questions: Sequence[Question],
        details: Sequence[dict[str, Any]],
        tokens: Sequence[str],
        references: Sequence[Sequence[str]],
    ) -> dict[str, float]:
        """Figures of parts of the set, from the captions as tokens."""
        return {}

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """What is to be known about the figures of this set."""
        return []

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """The server's list of `image_id` and `caption`."""
        entries = [
            {"image_id": question.record["image_id"], "caption": answers[question.id]["text"].strip()}
            for question in questions
        ]
        path = folder / f"{self.name}_results.json"
        path.write_text(json.dumps(entries, ensure_ascii=False))
        return path

    def _tokenizer(self) -> str:
        if self.settings["tokenizer"] == "auto":
            return "java" if has_java_tokenizer() else "own"
        return self.settings["tokenizer"]

    def _clip(
        self, questions: Sequence[Question], captions: Sequence[str], details: Sequence[dict[str, Any]]
    ) -> dict[str, float]:
        from .clip_score import ClipScorer

        if self.images is None:
            raise ValueError(f"{self.name}: CLIP-S looks at the pictures: give their folder with --images.")
        scorer = ClipScorer.load(self.settings["clip"])
        pictures = [self.images / str(question.images[0]) for question in questions]
        scores = scorer.score(pictures, captions, [question.record["references"] for question in questions])
        for detail, clip, ref in zip(details, scores.clip, scores.ref_clip, strict=True):
            detail |= {"CLIP-S": clip, "RefCLIP-S": ref}
        return {"CLIP-S": mean(scores.clip), "RefCLIP-S": mean(scores.ref_clip)}


def tokenise(
    captions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str
) -> tuple[list[str], list[list[str]]]:
    """Captions and their references as the metrics count them, by the tokenizer "java" or "own"."""
    flat = [*captions, *(reference for image in references for reference in image)]
    tokens = java_tokens(flat) if tokenizer == "java" else [ptb_tokens(text) for text in flat]
    rest = iter(tokens[len(captions) :])
    return tokens[: len(captions)], [[next(rest) for _ in image] for image in references]


def read_coco_style(path: Path, document: Any, what: str) -> list[tuple[Record, list[str]]]:
    """The pictures of a file laid out as COCO's captions are, each with its captions; none in a test split.

    Raises:
        ValueError: a picture is there twice or has no caption, a caption has no picture, or fields are missing.
    """
    captions: dict[int, list[str]] = {}
    pictures: dict[int, Record] = {}
    for record in list_records(path, document, "images", what):
        name = record.get("id", int)
        if name in pictures:
            raise record.error("id", f"expected each picture once, found {name} again")
        record.get("file_name", str)
        pictures[name] = record
    if "annotations" not in document:
        return [(record, []) for record in pictures.values()]
    seen: set[int] = set()
    for record in list_records(path, document, "annotations", what):
        name, number = record.get("image_id", int), record.get("id", int)
        if name not in pictures:
            raise record.error("image_id", f"expected the id of a picture of the same file, found {name}")
        if number in seen:
            raise record.error("id", f"expected each caption once, found {number} again")
        seen.add(number)
        captions.setdefault(name, []).append(record.get("caption", str))
    for name, record in pictures.items():
        if name not in captions:
            raise record.error("id", f"expected captions of picture {name}, found none")
    return [(record, captions[name]) for name, record in pictures.items()]


def only_file(files: Files, name: str, what: str) -> Path:
    """The one annotations file that the benchmark reads."""
    if len(files.annotations) != 1:
        found = ", ".join(map(str, files.annotations)) or "none"
        raise ValueError(f"{name}: expected one --annotations file, {what}; found {found}.")
    return files.annotations[0]
