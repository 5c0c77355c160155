"""Benchmarks without a download: easy-VQA's held-out pictures, read and scored by the code of the real benchmarks.

`vwlmm eval checkpoints/demo/4_visual_words --suite eval/suites/embedded.yaml --out results/demo`    (make eval)
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vwlmm.embedded import ROOT, prepare

from . import prompts
from .benchmark import Files, Question
from .captioning import OPTIONS as CAPTION_OPTIONS
from .coco_captions import COCOCaptions
from .pope import POPE, SUBSETS
from .retrieval import FileRetrieval
from .vqav2 import VQAv2

FOLDER = "easy-vqa-benchmarks"


def embedded_files(data: Path) -> tuple[Path, Path]:
    """The folder of the official files and that of the pictures, both made on first use below `data`."""
    import shutil
    import tempfile

    from vwlmm.demo.benchmark_files import write_benchmark_files

    pictures = prepare("easy-vqa", data)
    folder = data / FOLDER
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=data) as scratch:
            write_benchmark_files(pictures, Path(scratch))
            shutil.copytree(scratch, folder, dirs_exist_ok=True)  # another process may have made the same files
    return folder, pictures / "images"


def without_instruction(question: Question) -> Question:
    """The question alone: the demo model was trained on questions without LLaVA's instruction line."""
    (turn,) = question.messages
    *rest, text = turn["content"]
    bare = {**text, "text": text["text"].removesuffix("\n" + prompts.SHORT_ANSWER)}
    return replace(question, messages=[{**turn, "content": [*rest, bare]}])


class EmbeddedVQA(VQAv2):
    """600 held-out questions of easy-VQA in VQAv2's form. Without looking at the pictures 67 % can be right."""

    name = "embedded_vqa"
    title = "easy-VQA (VQAv2's form)"
    options = {"instruction": False}  # True: with LLaVA's line "Answer the question using …" behind it
    published = {}
    max_new_tokens = 16
    default_data = ROOT

    def files(self, data: Path) -> Files:
        """Written from the package easy-vqa on first use."""
        folder, images = embedded_files(data)
        return Files((folder / "vqa_annotations.json",), (folder / "vqa_questions.json",), images)

    def read(self, files: Files) -> list[Question]:
        """VQAv2's reader; the pictures have easy-VQA's names."""
        questions = [_with_picture(question) for question in super().read(files)]
        return questions if self.settings["instruction"] else [without_instruction(q) for q in questions]


class EmbeddedPOPE(POPE):
    """Is there a red circle? One thing of 100 held-out pictures that is there and one that is not, in POPE's three ways."""

    name = "embedded_pope"
    title = "easy-VQA (POPE's form)"
    options = {"instruction": False}
    published = {}
    max_new_tokens = 16
    default_data = ROOT

    def files(self, data: Path) -> Files:
        """Written from the package easy-vqa on first use."""
        folder, images = embedded_files(data)
        return Files(tuple(folder / f"coco_pope_{subset}.json" for subset in SUBSETS), (), images)

    def read(self, files: Files) -> list[Question]:
        """POPE's reader."""
        questions = super().read(files)
        return questions if self.settings["instruction"] else [without_instruction(q) for q in questions]


class EmbeddedCaptions(COCOCaptions):
    """100 held-out pictures in COCO's form, with the derived caption in three wordings as references.

    The demo learns captions in its first stage only, without a question before them, and answers to questions ever after.
    """

    name = "embedded_captions"
    title = "easy-VQA (COCO captions' form)"
    options = {**CAPTION_OPTIONS, "prompt": "Describe the picture.", "format": "chat"}
    published = {}
    max_new_tokens = 16
    default_data = ROOT

    def files(self, data: Path) -> Files:
        """Written from the package easy-vqa on first use."""
        folder, images = embedded_files(data)
        return Files((folder / "captions.json",), (), images)


class EmbeddedRetrieval(FileRetrieval):
    """24 held-out pictures, one of every colour and shape, against their 24 captions; by chance R@1 is 4 %."""

    name = "embedded_retrieval"
    title = "easy-VQA (Karpathy's form)"
    dataset = "easy-vqa"
    default_data = ROOT

    def files(self, data: Path) -> Files:
        """Written from the package easy-vqa on first use."""
        folder, images = embedded_files(data)
        return Files((folder / "dataset_retrieval.json",), (), images)


def _with_picture(question: Question) -> Question:
    record: Mapping[str, Any] = question.record
    return replace(question, images=(f"test/{record['image_id']}.png",))
