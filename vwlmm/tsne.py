"""A picture of two towers before and after they were joined: t-SNE of images and captions, coloured by a label.

vwlmm tsne checkpoints/freeze_align/embedded_vit_s14 --data pairs.json --label-field category --out tsne.png

Needs scikit-learn (`pip install vwlmm[align]`). Paper: freeze-align (arXiv 2409.19425), A.5.
"""

import argparse
import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vwlmm.data.bad_row import BadRow
from vwlmm.data.images import ImageProblem, ImageSource, load_image
from vwlmm.data.sources import open_records
from vwlmm.options import add_device

EXAMPLE = """\
example:
  vwlmm tsne checkpoints/freeze_align/embedded_vit_s14 \\
      --data checkpoints/embedded/named-pictures/train.json --label-field category --classes animals food town --out tsne.png

Three panels: images and captions as the frozen towers see them (two spaces, so two maps), and both in the space of the
trained pair (one map: dots are images, crosses their captions). t-SNE shows neighbours; distances between groups mean
nothing, and another seed turns the map around.
"""
SEED = 0


@dataclass(frozen=True)
class LabelledPairs:
    """Pictures, captions and what they are, in one order."""

    images: list[ImageSource]
    captions: list[str]
    labels: list[str]


def read_labelled_pairs(
    path: str | Path, label_field: str, *, images: Path | None = None, classes: list[str] | None = None, limit: int = 50
) -> LabelledPairs:
    """At most `limit` pairs of each class, the first ones; of the six commonest classes unless they are named.

    Raises:
        BadRow: a row without image, caption or label in words.
        ValueError: a class that no row has, or fewer than ten pairs.
    """
    records = open_records(path)
    folder = records.folder if images is None else images
    rows: list[tuple[ImageSource, str, str]] = []
    for record in records:
        if isinstance(record.value, BadRow):
            raise record.value
        value = record.value if isinstance(record.value, dict) else {}
        for field in (label_field, "caption"):
            if not isinstance(value.get(field), str) or not value[field].strip():
                raise BadRow(record.source, str(record.index), field, "words", repr(value.get(field)))
        image = value.get("image")
        if not isinstance(image, (str, bytes, dict)) or not image:
            raise BadRow(record.source, str(record.index), "image", "a picture", repr(image))
        rows.append((folder / image if isinstance(image, str) else image, value["caption"], value[label_field]))
    counts = Counter(label for _, _, label in rows)
    wanted = classes or [label for label, _ in counts.most_common(6)]
    missing = [label for label in wanted if label not in counts]
    if missing:
        raise ValueError(f"{path}: no row has {label_field} '{missing[0]}'; there are {', '.join(counts)}.")
    chosen = [row for label in wanted for row in [r for r in rows if r[2] == label][:limit]]
    if len(chosen) < 10:
        raise ValueError(f"{path}: a map needs at least 10 pairs, found {len(chosen)}.")
    return LabelledPairs([r[0] for r in chosen], [r[1] for r in chosen], [r[2] for r in chosen])


def tsne(features: Tensor, *, perplexity: float = 30.0, seed: int = SEED) -> Tensor:
    """Two coordinates a row, `[rows, 2]`, by cosine; the same for the same features and seed.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: features that are not finite.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("t-SNE is scikit-learn's: pip install scikit-learn, or vwlmm[align].")
    from sklearn.manifold import TSNE

    if not torch.isfinite(features).all():
        raise ValueError("Some features are not finite: look whether the encoder overflowed (try fp32).")
    # scikit-learn wants the perplexity below the number of rows; a third of them is its own advice for small sets.
    near = min(perplexity, max(2.0, (len(features) - 1) / 3))
    unit = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return torch.from_numpy(TSNE(perplexity=near, metric="cosine", init="pca", random_state=seed).fit_transform(unit))


@torch.no_grad()
def views(source: str, pairs: LabelledPairs, device: str | None = None, batch_size: int = 32) -> dict[str, Tensor]:
    """`image` and `text` of the frozen towers (mean over tokens), and `joint`: both in the pair's space, images first.

    Raises:
        ValueError: not a dual encoder of ours.
    """
    from vwlmm.models import DualEncoderModel
    from vwlmm.models.token_projectors import masked_mean
    from vwlmm.pair_encoder import load_pair_encoder

    pair = load_pair_encoder(source, device=device)
    model = pair.model
    if not isinstance(model, DualEncoderModel):
        raise ValueError(f"{source} is no dual encoder of vwlmm: 'before' would be the same as 'after'.")
    before: dict[str, list[Tensor]] = {"image": [], "text": []}
    after: dict[str, list[Tensor]] = {"image": [], "text": []}
    for start in range(0, len(pairs.images), batch_size):
        part = slice(start, start + batch_size)
        tokens = model.vision_tokens(pair.pixels([load_image(image) for image in pairs.images[part]]))
        before["image"].append(tokens.float().mean(1).cpu())
        after["image"].append(model.encode_image(tokens=tokens).float().cpu())
        batch = pair.tokens(pairs.captions[part])
        words = model.text_tokens(**batch)
        before["text"].append(masked_mean(words, batch["attention_mask"]).float().cpu())
        after["text"].append(model.encode_text(**batch).float().cpu())
    joint = torch.cat([torch.cat(after["image"]), torch.cat(after["text"])])
    return {"image": torch.cat(before["image"]), "text": torch.cat(before["text"]), "joint": joint}


def neighbour_purity(features: Tensor, labels: list[str], k: int = 5) -> float:
    """Share of each row's k nearest other rows, by cosine, that have its label: the map in a number, without the map."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    near = (unit @ unit.T).fill_diagonal_(-torch.inf).topk(k).indices  # [rows, k]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    own = torch.tensor([numbers[label] for label in labels])
    return float((own[near] == own[:, None]).double().mean())


def draw(maps: dict[str, Tensor], labels: list[str], purity: dict[str, float], out: str | Path) -> None:
    """The three maps side by side. `maps` and `purity` have `image`, `text` and `joint`."""
    import matplotlib.pyplot as plt

    classes = list(dict.fromkeys(labels))
    colours = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
    titles = {"image": "images, frozen tower", "text": "captions, frozen tower", "joint": "both, after training"}
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    count = len(labels)
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        for number, name in enumerate(classes):
            rows = torch.tensor([label == name for label in labels])
            colour = colours(number % colours.N)
            if kind == "joint":
                axes.scatter(*maps[kind][:count][rows].T, s=14, color=colour, label=name)
                axes.scatter(*maps[kind][count:][rows].T, s=22, color=colour, marker="x", linewidth=0.9)
            else:
                marker = {"s": 14} if kind == "image" else {"s": 22, "marker": "x", "linewidth": 0.9}
                axes.scatter(*maps[kind][rows].T, color=colour, label=name, **marker)
        axes.set_title(f"{title}\nsame class among the 5 nearest: {100 * purity[kind]:.0f} %", fontsize=10)
        axes.set(xticks=[], yticks=[])
    panels[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=130)
    plt.close(figure)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vwlmm tsne`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of a dual encoder")
    parser.add_argument("--data", required=True, metavar="FILE", help="rows with image, caption and a label")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="where image paths start (default: folder of --data)"
    )
    parser.add_argument("--label-field", default="label", metavar="NAME", help="column that colours (default: label)")
    parser.add_argument("--classes", nargs="+", metavar="LABEL", help="which (default: the six commonest)")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="pairs a class (default: 50)")
    parser.add_argument("--perplexity", type=float, default=30.0, metavar="X", help="default: 30")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="default: 0")
    parser.add_argument("--out", type=Path, default=Path("tsne.png"), metavar="PNG", help="default: tsne.png")
    add_device(parser)


def main(args: argparse.Namespace) -> int:
    """Embeds, maps and draws; prints how pure the neighbourhoods are.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: bad rows, or a model that is no dual encoder.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("t-SNE is scikit-learn's: pip install scikit-learn, or vwlmm[align].")
    pairs = read_labelled_pairs(args.data, args.label_field, images=args.images, classes=args.classes, limit=args.limit)
    try:
        features = views(str(args.model), pairs, args.device)
    except ImageProblem as problem:
        raise ValueError(f"{args.data}: {problem}; run `vwlmm data check` on it.") from problem
    labels = {"image": pairs.labels, "text": pairs.labels, "joint": pairs.labels * 2}
    purity = {kind: neighbour_purity(rows, labels[kind]) for kind, rows in features.items()}
    maps = {kind: tsne(rows, perplexity=args.perplexity, seed=args.seed) for kind, rows in features.items()}
    draw(maps, pairs.labels, purity, args.out)
    for kind, value in purity.items():
        print(f"{kind}: same class among the 5 nearest {100 * value:.1f} %")
    print(f"{len(pairs.labels)} pairs of {len(set(pairs.labels))} classes: {args.out}")
    return 0
