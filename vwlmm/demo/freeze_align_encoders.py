"""freeze-align on real pictures: which encoders to join, which pairs to train on, and what the pair sees where.

python -m vwlmm.demo.freeze_align_encoders       # about eight minutes of one core; writes docs/freeze_align_encoders.md

Paper: arXiv 2409.19425. Training, retrieval and classification with seeds and baselines: `vwlmm.demo.freeze_align`.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vwlmm.cli import main as command
from vwlmm.config import read_recipe
from vwlmm.demo.freeze_align_segmentation import TEMPLATE, make_sheets, segment
from vwlmm.demo.freeze_align_segmentation import draw as draw_sheets
from vwlmm.embedded import prepare
from vwlmm.encoder_sets import embed_text, embed_vision, embeddings_of, read_set
from vwlmm.pair_encoder import load_pair_encoder
from vwlmm.select_encoders import best_pair, cka_table, draw, short_names
from vwlmm.training import is_finished, run

VISION = ["checkpoints/embedded/vit-s14@11", "checkpoints/embedded/efficientnet-lite0"]
TEXT = ["checkpoints/embedded/all-minilm-l6-v2", "checkpoints/embedded/smollm2-135m-instruct"]
RECIPE = "train/freeze_align/embedded/vit_s14.yaml"
EMOJI = "emoji"  # the one category that says nothing about what is shown
SHOTS, FEWEST, PER_CONCEPT = 8, 5, 15  # pictures a prototype, rows a category needs to be a concept, captions a concept
NUM_SHEETS = 60
DRAWS = 1000  # random choices that the curated one is compared with


def main(arguments: list[str] | None = None) -> int:
    """Does both steps and writes the page, whatever the outcome; what is there already is not made again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/freeze_align"), help="folder (%(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the page (%(default)s)")
    args = parser.parse_args(arguments)
    data = prepare("named-pictures")
    (args.docs / "images").mkdir(parents=True, exist_ok=True)
    table = select(data / "train.json", args.out / "cka", args.docs / "images/freeze_align_cka.png")
    print(json.dumps(table), flush=True)
    recipe = read_recipe(RECIPE)
    if not is_finished(recipe):
        run(recipe)
    curated = curate(data, str(recipe.training["output_dir"]), args.out / "curation")
    picture = args.docs / "images/freeze_align_coverage.png"
    picture.write_bytes((args.out / "curation/out/coverage.png").read_bytes())
    pair = load_pair_encoder(recipe.training["output_dir"])
    sheets = make_sheets(data, ["heldout_stamps"], curated["concepts"], NUM_SHEETS)
    segmented = segment(pair, sheets, curated["concepts"])
    draw_sheets(pair, sheets[:5], curated["concepts"], args.docs / "images/freeze_align_segmentation.png")
    text = page(table, curated) + segmentation_section(segmented)
    (args.docs / "freeze_align_encoders.md").write_text(text, encoding="utf-8")
    print(f"Written: {args.docs / 'freeze_align_encoders.md'}")
    return 0


def select(pairs_file: Path, kept: Path, picture: Path) -> dict[str, Any]:
    """Linear and RBF CKA of every vision encoder with every text encoder over the training pairs."""
    pairs = read_set(pairs_file)
    vision = [embeddings_of(spec, "vision", pairs, folder=kept, embed=embed_vision) for spec in VISION]
    text = [embeddings_of(spec, "text", pairs, folder=kept, embed=embed_text) for spec in TEXT]
    linear, rbf = (cka_table(vision, text, kernel) for kernel in ("linear", "rbf"))
    names = short_names(VISION), short_names(TEXT)
    draw(linear, *names, f"linear CKA, {len(pairs.images):,} pictures", picture)
    return {
        "pictures": len(pairs.images),
        "vision": names[0],
        "text": names[1],
        "linear": linear.tolist(),
        "rbf": rbf.tolist(),
        "best": [names[side][index] for side, index in enumerate(best_pair(linear))],
    }


def curate(data: Path, model: str, folder: Path) -> dict[str, Any]:
    """Curates emoji and stamps by the stamps' categories, and counts how many chosen stamps are of the right one."""
    folder.mkdir(parents=True, exist_ok=True)
    concepts, prototypes = write_concepts(data, folder / "concepts.jsonl")
    shards: list[Path] = []
    owners: dict[str, tuple[str, str]] = {}  # split and category by id
    for split in ("train", "heldout_concepts", "heldout_stamps"):
        shards.append(data / f"{split}.json")
        owners |= {row["id"]: (split, row["category"]) for row in json.loads(shards[-1].read_text("utf-8"))}
    options = ["--model", model, "--concepts", str(folder / "concepts.jsonl"), "--label-field", "category"]
    options += ["--shots", str(SHOTS), "--per-concept", str(PER_CONCEPT), "--depth", "50", "--score-range", "-1", "1"]
    if command(["data", "curate", *map(str, shards), *options, "--out", str(folder / "out")]) != 0:
        raise ValueError(f"The curation in {folder / 'out'} failed: see its message above.")
    report = json.loads((folder / "out/report.json").read_text())
    rows = [json.loads(line) for line in (folder / "out/pairs.jsonl").read_text("utf-8").splitlines()]
    pool = [category for _, category in owners.values() if category in concepts]
    found: dict[str, Any] = {"report": report, "concepts": concepts, "pool": len(owners), "prototypes": prototypes}
    found["emoji_in_pool"] = sum(category == EMOJI for _, category in owners.values())
    for name, splits in (("all", ("train", "heldout_stamps")), ("held out", ("heldout_stamps",))):
        stamps = [row for row in rows if row["category"] in concepts and owners[row["id"]][0] in splits]
        found[name] = {
            "stamps": len(stamps),
            "right": sum(row["category"] == row["concept"] for row in stamps),
            "chance": _chance([row["concept"] for row in stamps], pool),
        }
    found["emoji"] = [row["caption"] for row in rows if row["category"] == EMOJI]
    return found


def write_concepts(data: Path, file: Path) -> tuple[list[str], int]:
    """The labelled pictures: stamps of the training pairs whose category has enough; returns categories and pictures."""
    rows = json.loads((data / "train.json").read_text("utf-8"))
    counts = Counter(row["category"] for row in rows if row["category"] != EMOJI)
    concepts = sorted(category for category, count in counts.items() if count >= FEWEST)
    chosen = [row | {"image": str((data / row["image"]).resolve())} for row in rows if row["category"] in concepts]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8")
    return concepts, sum(min(SHOTS, counts[concept]) for concept in concepts)


def _chance(concepts: list[str], pool: list[str]) -> float:
    """Share that is right if each concept draws as many stamps from the pool without looking, mean of many draws."""
    if not concepts:
        return 0.0
    generator = random.Random(0)
    draws = (generator.sample(pool, len(concepts)) for _ in range(DRAWS))
    return sum(sum(a == b for a, b in zip(concepts, drawn, strict=True)) for drawn in draws) / DRAWS / len(concepts)


def page(table: dict[str, Any], curated: dict[str, Any]) -> str:
    """Both steps in Markdown, with the commands that make the figures."""
    return "\n".join([*_encoders_section(table), *_curation_section(curated), ""])


def _encoders_section(table: dict[str, Any]) -> list[str]:
    lines = [
        "# Choosing encoders and pairs: freeze-align's steps 1 and 2 on real pictures",
        "",
        "Made by `python -m vwlmm.demo.freeze_align_encoders` from the embedded encoders and the named pictures "
        "(`python -m vwlmm.embedded named-pictures`). Why CKA: [the toy experiment](freeze_align_toy.md).",
        "",
        "## Which encoders?",
        "",
        "```",
        f"vwlmm select-encoders --vision {' '.join(VISION)} \\",
        f"    --text {' '.join(TEXT)} \\",
        "    --data checkpoints/embedded/named-pictures/train.json --embeddings checkpoints/freeze_align/cka --out cka.png",
        "```",
        "",
        f"Linear CKA (RBF with the median distance as width in brackets), {table['pictures']:,} pictures with their names:",
        "",
        "| | " + " | ".join(table["text"]) + " |",
        "|---|" + "---|" * len(table["text"]),
    ]
    for name, linear, rbf in zip(table["vision"], table["linear"], table["rbf"], strict=True):
        cells = (f"{a:.3f} ({b:.3f})" for a, b in zip(linear, rbf, strict=True))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Best pair: **{' + '.join(table['best'])}**. Pictures are the mean over all tokens, captions as each encoder pools "
        "them (SmolLM2: the mean of its last hidden states).",
        "",
        "![CKA](images/freeze_align_cka.png)",
        "",
    ]
    return lines


def _curation_section(curated: dict[str, Any]) -> list[str]:
    report, rows = curated["report"], curated["report"]["concepts"]
    lines = [
        "## Which pairs?",
        "",
        "```",
        f"vwlmm train {RECIPE}",
        "vwlmm data curate checkpoints/embedded/named-pictures/{train,heldout_concepts,heldout_stamps}.json \\",
        "    --model checkpoints/freeze_align/embedded_vit_s14 --concepts checkpoints/freeze_align/curation/concepts.jsonl \\",
        f"    --label-field category --shots {SHOTS} --per-concept {PER_CONCEPT} --depth 50 --score-range -1 1 --out curated",
        "```",
        "",
        f"The pool holds {curated['pool']:,} captions, {curated['emoji_in_pool']:,} of them emoji. Concepts are the "
        f"{len(curated['concepts'])} categories of stamps with at least {FEWEST} pictures in the training pairs; "
        f"{curated['prototypes']} pictures make the prototypes, embedded by the trained ViT-S/14 and MiniLM pair, which also "
        "embeds the captions. The category is used for nothing else, so it says whether the choice is right:",
        "",
        "| stamps among the chosen | of the concept's own category | without looking |",
        "|---|---|---|",
    ]
    for name in ("all", "held out"):
        part = curated[name]
        share = f"{part['right']} of {part['stamps']} ({100 * part['right'] / max(1, part['stamps']):.0f} %)"
        what = "all" if name == "all" else "whose names the pair never saw"
        lines.append(f"| {what} | {share} | {100 * part['chance']:.0f} % |")
    lines += [
        "",
        f"{report['num_chosen']} pairs were chosen, {len(curated['emoji'])} of them emoji: their names are bare words, the "
        "captions of stamps are sentences, and the prototypes are stamps. "
        f"{report['num_clipped_high']} scores lay outside the range. Captions nearest to each concept before and after the "
        "choice, rarest concept first (`report.md` has all columns):",
        "",
        "| concept | commonality | chosen | nearest of all | nearest of the chosen |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        share_all = 100 * row["nearest_of_all"] / report["num_rows"]
        share_chosen = 100 * row["nearest_of_chosen"] / report["num_chosen"]
        lines.append(
            f"| {row['concept']} | {row['commonality']:.3f} | {row['chosen']} | {row['nearest_of_all']} ({share_all:.1f} %) "
            f"| {row['nearest_of_chosen']} ({share_chosen:.1f} %) |"
        )
    return [*lines, "", "![coverage](images/freeze_align_coverage.png)"]


def segmentation_section(segmented: dict[str, dict[str, float]]) -> str:
    """Zero-shot segmentation in Markdown."""
    lines = [
        "",
        "## Where is it?",
        "",
        f"Zero-shot segmentation with the same pair: {NUM_SHEETS} sheets of four held-out stamps each, masks from what is not "
        f"white, all concepts as candidates (“{TEMPLATE}”), 8 × 8 patches. IoU in percent; beside it the same with every "
        "concept's text exchanged for another's.",
        "",
        "| measure | pair | patches without class token | texts exchanged |",
        "|---|---|---|---|",
    ]
    names = {
        "paper": "paper: nearest concept of each drawn pixel, mean over the concepts",
        "paper_all_pixels": "the same over all pixels: a concept seen in the white is wrong",
        "script_mean": "script: each concept's map cut at 0.4, mean over pictures and concepts",
        "script_by_class": "script, mean over concepts",
        "miou": "argmax with a background below cosine 0",
    }
    for key, name in names.items():
        cells = (f"{100 * segmented[way][key]:.1f}" for way in segmented)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "The pair learned whole pictures in 100 steps, and eight by eight patches see little of a place: the columns say how "
        "far that goes. The script looks only at concepts that are on the sheet and cuts each map by itself, so its figures are "
        "not comparable with the others.",
        "",
        "![sheets](images/freeze_align_segmentation.png)",
        "",
        "Images and captions before and after training, by t-SNE (`pip install vwlmm[align]`):",
        "",
        "```",
        "vwlmm tsne checkpoints/freeze_align/embedded_vit_s14 --data checkpoints/embedded/named-pictures/train.json \\",
        "    --label-field category --classes animals food plants vehicles town household --out tsne.png",
        "```",
        "",
        "![t-SNE](images/freeze_align_tsne.png)",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
