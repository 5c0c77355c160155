"""Time and memory of curation without its encoder: scoring, choosing and writing, at two sizes.

python bench/curation.py --out bench/results.md
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from measure import machine_description, peak_bytes, write_section
from torch import Tensor

from vwlmm.curation import CurateConfig, Fields, Prototypes, Scale, ScoreStore, choose
from vwlmm.curation.curate import write_pairs

DIM, SHARD_ROWS = 256, 250_000


def embed(captions: list[str]) -> Tensor:
    """A stand-in for a text tower: cheap, and different for each number in a caption."""
    numbers = torch.tensor([int(caption[8:]) for caption in captions], dtype=torch.float32)
    return torch.sin(numbers[:, None] * torch.linspace(0.1, 9.7, DIM) + torch.linspace(0, 6, DIM)) + 0.2


def write_shards(folder: Path, rows: int) -> list[Path]:
    """JSON lines with numbered captions."""
    shards = []
    for start in range(0, rows, SHARD_ROWS):
        shards.append(folder / f"{start:09d}.jsonl")
        lines = (
            json.dumps({"image": f"{i}.jpg", "caption": f"caption {i}"})
            for i in range(start, min(rows, start + SHARD_ROWS))
        )
        shards[-1].write_text("\n".join(lines) + "\n")
    return shards


def measure(rows: int, concepts: int, device: torch.device) -> dict[str, float]:
    """CPU seconds and peak megabytes of each step."""
    vectors = torch.nn.functional.normalize(
        torch.randn(concepts, DIM, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    prototypes = Prototypes([f"concept {i}" for i in range(concepts)], vectors)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = ScoreStore(folder / "scores", write_shards(folder, rows), Scale("int8", -1, 1), 65_536)
        store.open({})
        config = CurateConfig(scale=store.scale, per_concept=200)
        chosen: list = []

        def timed(step, function) -> None:
            def run() -> None:
                began = time.process_time()
                function()
                result[f"{step} s"] = time.process_time() - began

            result[f"{step} MB"] = peak_bytes(run, device) / 2**20

        timed("score", lambda: store.score(embed, prototypes, Fields()))
        timed("choose", lambda: chosen.append(choose(store, concepts, per_concept=200)))
        timed("write", lambda: write_pairs(store, chosen[0], prototypes.names, folder / "out", config))
        result["disk MB"] = sum(file.stat().st_size for file in (folder / "scores").rglob("*.npy")) / 2**20
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--concepts", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    lines = [
        f"{machine_description(device)}; one thread, int8 scores, {args.concepts} concepts, 200 captions each",
        "",
        "Command: `python bench/curation.py --out bench/results.md`. Captions are embedded by a stand-in of 256 dimensions, so",
        "`score` is everything but the text tower. Seconds: CPU time. MB: peak above what was held before.",
        "",
        "| captions | scores on disk, MB | score, s | MB | choose, s | MB | write, s | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rows in args.rows:
        found = measure(rows, args.concepts, device)
        cells = [
            f"{found[f'{step} {unit}']:.{1 if unit == 's' else 0}f}"
            for step in ("score", "choose", "write")
            for unit in ("s", "MB")
        ]
        lines.append(f"| {rows:,} | {found['disk MB']:.0f} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if args.out:
        write_section(args.out, "Curation, cpu", "\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
