"""Two frozen encoders joined on real pictures: retrieval and zero-shot classification before and after, three seeds.

python -m vwlmm.demo.freeze_align        # about 15 minutes of one core; writes docs/freeze_align.md

Paper: freeze-align (arXiv 2409.19425), in miniature: things and a drawing style that training never saw.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments, set_seed

from vwlmm.config import Recipe, read_recipe
from vwlmm.data.pairs_config import PairDataConfig
from vwlmm.demo.freeze_align_baseline import PooledPair, train_baseline
from vwlmm.demo.freeze_align_report import page
from vwlmm.embedded import prepare
from vwlmm.functional import linear_cka
from vwlmm.models import DualEncoderModel
from vwlmm.models.token_projectors import masked_mean
from vwlmm.pair_training import CachedPairs, build_pair, load_pairs
from vwlmm.retrieval import recall
from vwlmm.training import is_finished, run

RECIPES = {
    "ViT-S/14": "train/freeze_align/embedded/vit_s14.yaml",
    "EfficientNet-Lite0": "train/freeze_align/embedded/efficientnet_lite0.yaml",
}
# File of the data → what is new in it.
SPLITS = {
    "heldout_concepts": "new things (OpenMoji)",
    "heldout_style": "new style (Noto), things known",
    "heldout_both": "new style, new things",
    "heldout_stamps": "new things (stamps)",
}
TEMPLATE = "a picture of {}"
# What the folders of the stamps are called, in words.
CATEGORIES = {"town": "a building or a place", "naturalforces": "a force of nature", "military": "a military thing"}

Scores = dict[str, dict[str, float]]  # by split, by measure


def main(arguments: list[str] | None = None) -> int:
    """Trains what is not there yet, scores every model on the same pictures, and writes the page whatever the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("checkpoints/freeze_align"), help="folder (default %(default)s)"
    )
    parser.add_argument("--page", type=Path, default=Path("docs/freeze_align.md"), help="page (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="change both recipes")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    data = prepare("named-pictures")
    results: dict[str, Any] = {"chance": {}, "pairs": {}}
    for name, file in RECIPES.items():
        print(f"\n{name}", flush=True)
        results["pairs"][name] = study(file, data, args.out, args.seeds, results["chance"], args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text(page(results, SPLITS, args.seeds))
    print(f"\nWritten: {args.page}")
    return 0


def study(file: str, data: Path, out: Path, seeds: list[int], chance: Scores, overrides: list[str]) -> dict[str, Any]:
    """One pair of towers: its CKA, and for every seed the scores before, after, and of transformers' dual encoder."""
    tag = Path(file).stem
    first = read_recipe(file, overrides)
    model, processor = build_pair(first.model)
    sets = {
        split: _cached(first, split, data, out / "features" / f"{tag}_{split}", model, processor) for split in SPLITS
    }
    train_set = _cached(first, "train", data, Path(str(first.data.cache)), model, processor)
    texts = TextBank(model, processor.tokenizer)
    found: dict[str, Any] = {
        "cka": cka(train_set),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "pairs": len(train_set),
        "steps": first.training["max_steps"],
        "batch": first.training["per_device_train_batch_size"],
        "seeds": {},
    }
    pooled = PooledPair(model, texts, train_set)
    for seed in seeds:
        changes = {
            "training.seed": seed,
            "training.output_dir": out / f"{tag}_seed_{seed}",
            "data.validation_path": "null",
        }
        recipe = read_recipe(file, [*overrides, *(f"{key}={value}" for key, value in changes.items())])
        set_seed(seed)
        before = build_pair(recipe.model)[0]  # what `run` begins with
        began = time.process_time()
        if not is_finished(recipe):
            run(recipe)
        seconds = time.process_time() - began
        after = DualEncoderModel.from_pretrained(recipe.training["output_dir"])
        baseline = train_baseline(pooled, train_set, recipe, seed)
        scores: dict[str, Any] = {"train_seconds": seconds}
        for label, embedder in (
            ("before", Embedder(before, texts)),
            ("after", Embedder(after, texts)),
            ("baseline", baseline),
        ):
            scores[label] = {
                split: score(embedder, pairs, chance.setdefault(split, {})) for split, pairs in sets.items()
            }
            print(f"seed {seed} {label}: {_short(scores[label])}", flush=True)
        found["seeds"][str(seed)] = scores
    return found


def _cached(recipe: Recipe, split: str, data: Path, cache: Path, model: Any, processor: Any) -> CachedPairs:
    config = PairDataConfig(
        path=str(data / f"{split}.json"), cache=str(cache), cache_dtype=recipe.data.cache_dtype, num_workers=0
    )
    on_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(output_dir=str(cache), use_cpu=on_cpu, report_to="none", dataloader_num_workers=0)
    pairs: Any = load_pairs(config, model, processor, arguments)[0]
    return pairs


class TextBank:
    """The frozen text tower's tokens of every text that is asked for, computed once: all seeds share the tower."""

    def __init__(self, model: DualEncoderModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.known: dict[str, Tensor] = {}
        self.pooled: dict[str, Tensor] = {}  # `pooler_output`, which transformers' dual encoder reads

    @torch.no_grad()
    def learn(self, texts: list[str]) -> None:
        """Runs the tower on texts that are not known yet."""
        new = sorted(set(texts) - self.known.keys())
        for start in range(0, len(new), 64):
            some = new[start : start + 64]
            batch = self.tokenizer(some, padding=True, truncation=True, max_length=77, return_tensors="pt")
            mask = batch["attention_mask"]
            output = self.model.text_tower(input_ids=batch["input_ids"], attention_mask=mask)
            for row, text in enumerate(some):
                self.known[text] = output.last_hidden_state[row, : int(mask[row].sum())]
                self.pooled[text] = output.pooler_output[row]

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """`[texts, tokens, width]` and their mask."""
        self.learn(texts)
        rows = [self.known[text] for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad([torch.ones(len(row)) for row in rows], batch_first=True)


class Embedder:
    """A dual encoder that reads its towers' features."""

    def __init__(self, model: DualEncoderModel, bank: TextBank) -> None:
        self.model, self.bank = model.eval(), bank

    @torch.no_grad()
    def images(self, pairs: CachedPairs) -> Tensor:
        """Pictures of a cached set, `[images, dim]`."""
        chunks = [range(start, min(start + 64, len(pairs))) for start in range(0, len(pairs), 64)]
        return torch.cat(
            [self.model.encode_image(tokens=torch.stack([pairs.vision[i] for i in chunk])) for chunk in chunks]
        )

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Texts, `[texts, dim]`."""
        rows = []
        for start in range(0, len(texts), 256):
            tokens, mask = self.bank.tokens(texts[start : start + 256])
            rows.append(self.model.encode_text(tokens=tokens, attention_mask=mask))
        return torch.cat(rows)


def score(embedder: Any, pairs: CachedPairs, chance: dict[str, float]) -> dict[str, float]:
    """Retrieval both ways and zero-shot top-1 on one held-out set; what guessing gives goes into `chance`."""
    rows = [pairs.pairs.records[index].value for index in range(len(pairs))]
    names = [row["name"] for row in rows]
    images, texts = embedder.images(pairs), embedder.texts([row["caption"] for row in rows])
    found = recall(images, texts, image_labels=names, text_labels=names)
    tasks = {"names": [row["name"] for row in rows]}
    if len({row["category"] for row in rows}) > 1:
        tasks["categories"] = [CATEGORIES.get(row["category"], row["category"]) for row in rows]
    for task, labels in tasks.items():
        classes = sorted(set(labels))
        own = torch.tensor([classes.index(label) for label in labels])
        nearest = (images @ embedder.texts([TEMPLATE.format(name) for name in classes]).T).argmax(1)
        found[f"zero_shot_{task}"] = (nearest == own).double().mean().item()
        chance[f"zero_shot_{task}"] = 1 / len(classes)
        chance[f"commonest_{task}"] = max(map(labels.count, classes)) / len(labels)
    nothing = torch.zeros(len(rows), 1)  # every answer is equally near: what guessing gives
    chance |= recall(nothing, nothing, image_labels=names, text_labels=names)
    return found


def cka(pairs: CachedPairs) -> float:
    """Linear CKA of the two towers over the training pairs: pictures as the mean of all tokens, captions too."""
    vision = torch.stack([pairs.vision[index].float().mean(0) for index in range(len(pairs))])
    text = torch.stack(
        [
            masked_mean(row[None], torch.ones(1, len(row)))[0]
            for row in (pairs.text[i].float() for i in range(len(pairs)))
        ]
    )
    return linear_cka(vision, text).item()


def _short(scores: Scores) -> str:
    return ", ".join(f"{split} R@1 {values['image_to_text_r1']:.3f}" for split, values in scores.items())


if __name__ == "__main__":
    sys.exit(main())
