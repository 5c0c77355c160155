"""NoCaps: captions of pictures with things that COCO does not have (Agrawal et al. 2019), by how new they are.

`vwlmm score nocaps --annotations nocaps_val_4500_captions.json --answers answers.jsonl`
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .benchmark import Files, Question
from .caption_metrics import bleu, cider_d, rouge_l
from .captioning import OPTIONS, Captioning, only_file, read_coco_style
from .official_files import find_files, read_json

DOMAINS = ("in-domain", "near-domain", "out-domain")


class NoCaps(Captioning):
    """Each domain is scored as a set by itself: its document frequencies come from its own references."""

    name = "nocaps"
    title = "NoCaps"
    options = OPTIONS

    def files(self, data: Path) -> Files:
        """The validation captions and the pictures, in a folder `nocaps_images` or `validation`."""
        (annotations,) = find_files(data, self.name, "nocaps_val_4500_captions.json")
        folders = (annotations.parent / name for name in ("nocaps_images", "validation", "images"))
        images = next((folder for folder in folders if folder.is_dir()), None)
        if images is None:
            raise FileNotFoundError(
                f"nocaps: expected the pictures in {annotations.parent / 'nocaps_images'}, found no such folder."
            )
        return Files((annotations,), (), images)

    def read(self, files: Files) -> list[Question]:
        """One question a picture; the test file has no captions and can only be answered."""
        path = only_file(files, self.name, "nocaps_val_4500_captions.json")
        self.images = files.images
        questions = []
        for record, references in read_coco_style(path, read_json(path), "NoCaps' captions"):
            domain = record.get("domain", str) if references else None
            if domain is not None and domain not in DOMAINS:
                raise record.error("domain", f"expected {', '.join(DOMAINS)}, found {domain!r}")
            number = record.value["id"]
            questions.append(
                Question(
                    id=str(number),
                    messages=self.messages(),
                    images=(record.value["file_name"],),
                    record={"image_id": number, "references": references, "domain": domain},
                    where=record.where,
                )
            )
        return questions

    def more_metrics(
        self,
        questions: Sequence[Question],
        details: Sequence[dict[str, Any]],
        tokens: Sequence[str],
        references: Sequence[Sequence[str]],
    ) -> dict[str, float]:
        """The same metrics of every domain."""
        metrics = {}
        for domain in DOMAINS:
            places = [i for i, question in enumerate(questions) if question.record["domain"] == domain]
            if not places:
                continue
            ours, theirs = [tokens[i] for i in places], [references[i] for i in places]
            ciders = cider_d(ours, theirs)
            for place, cider in zip(places, ciders, strict=True):
                details[place].update({"domain": domain, "CIDEr-D/domain": cider})
            metrics[f"CIDEr-D/{domain}"] = sum(ciders) / len(places)
            metrics[f"BLEU-4/{domain}"] = bleu(ours, theirs)[-1]
            metrics[f"ROUGE-L/{domain}"] = sum(rouge_l(ours, theirs)) / len(places)
            for name in ("CLIP-S", "RefCLIP-S"):
                if name in details[places[0]]:
                    metrics[f"{name}/{domain}"] = sum(details[i][name] for i in places) / len(places)
        return metrics

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """How the domains' figures come about."""
        return ["figures of a domain: document frequencies from that domain's own references, not from all of NoCaps"]
