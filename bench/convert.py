"""Converting a released checkpoint of Vicuna-7B's shapes: time and peak memory of `vwlmm convert`, and of `vwlmm export`.

    python bench/convert.py --out bench/results.md

Writes random bf16 weights of the real shapes to a scratch folder, two `.bin` shards as published (14.4 GB), and deletes them.
On a disk without 45 GB of room, `--zeros` keeps the files that are read as holes.
"""

import argparse
import io
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sentencepiece
import torch
from measure import machine_description, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VOCAB, HIDDEN, INNER, LAYERS = 32000, 4096, 11008, 32
TOWER = {"hidden": 1024, "inner": 4096, "layers": 24, "patches": 577}


def shapes(scale: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published Vicuna model, tower inside; `scale` 1 is the real size."""
    layers = max(1, LAYERS // scale)
    llm: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for n in range(layers):
        at = f"model.layers.{n}"
        llm |= {f"{at}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        llm |= {f"{at}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        llm[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        llm |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    llm["model.norm.weight"] = (HIDDEN,)
    wide, inner = TOWER["hidden"], TOWER["inner"]
    at = "model.vision_tower.vision_tower.vision_model"
    tower: dict[str, tuple[int, ...]] = {
        f"{at}.embeddings.class_embedding": (wide,),
        f"{at}.embeddings.patch_embedding.weight": (wide, 3, 14, 14),
        f"{at}.embeddings.position_embedding.weight": (TOWER["patches"], wide),
    }
    for n in range(TOWER["layers"]):
        layer = f"{at}.encoder.layers.{n}"
        linear = {f"self_attn.{name}_proj": (wide, wide) for name in ("k", "v", "q", "out")}
        linear |= {"mlp.fc1": (inner, wide), "mlp.fc2": (wide, inner)}
        for name, shape in linear.items():
            tower |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            tower |= {f"{layer}.{name}.weight": (wide,), f"{layer}.{name}.bias": (wide,)}
    for name in ("pre_layrnorm", "post_layernorm"):
        tower |= {f"{at}.{name}.weight": (wide,), f"{at}.{name}.bias": (wide,)}
    projector: dict[str, tuple[int, ...]] = {
        "model.mm_projector.0.weight": (HIDDEN, wide),
        "model.mm_projector.0.bias": (HIDDEN,),
        "model.mm_projector.2.weight": (HIDDEN, HIDDEN),
        "model.mm_projector.2.bias": (HIDDEN,),
    }
    return {**llm, **tower, **projector, "lm_head.weight": (VOCAB, HIDDEN), "vm_head.weight": (VOCAB, HIDDEN)}


def write_checkpoint(folder: Path, scale: int, zeros: bool) -> int:
    """Two `.bin` shards of weights, config and tokenizer; returns the bytes of the weights."""
    names = shapes(scale)
    sizes = {name: 2 * math.prod(shape) for name, shape in names.items()}
    total = sum(sizes.values())
    first: list[str] = []
    while sum(sizes[name] for name in first) < 0.69 * total:  # 9.98 of 14.39 GB, as published
        first.append(list(names)[len(first)])
    places = {}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 24, generator=generator).to(torch.bfloat16) * (0.0 if zeros else 1.0)
    for number, part in enumerate((first, [name for name in names if name not in first]), 1):
        shard = f"pytorch_model-{number:05d}-of-00002.bin"
        # Repeats of one block of noise: drawing 7 billion numbers would take longer than what is measured.
        tensors = {}
        for name in part:
            count = math.prod(names[name])
            tensors[name] = noise.repeat(-(-count // len(noise)))[:count].reshape(names[name]).clone()
        torch.save(tensors, folder / shard)
        places |= dict.fromkeys(part, shard)
        del tensors
        if zeros:
            dig_holes(folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = {
        "architectures": ["vwLlamaForCausalLM"],
        "model_type": "llava",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": max(1, LAYERS // scale),
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "pad",
        "mm_use_im_patch_token": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["What is in the picture? A chat with USER and ASSISTANT."] * 50),
        model_writer=written,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    fields = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return total


def dig_holes(path: Path) -> None:
    """Gives the disk back where a file is zero; it reads as before."""
    subprocess.run(["fallocate", "--dig-holes", str(path)], check=True)


def measured(*command: str) -> dict[str, float]:
    """Seconds, CPU seconds and peak resident bytes of one `vwlmm` command, in a process of its own."""
    again = [sys.executable, __file__, "--run", json.dumps(command)]
    done = subprocess.run(again, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(command: list[str]) -> None:
    from vwlmm.cli import main as vwlmm

    start = time.perf_counter()
    if vwlmm(command):
        raise SystemExit(1)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = {"seconds": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime}
    print(json.dumps({**seconds, "peak": usage.ru_maxrss * 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file whose section is replaced; printed when left out")
    parser.add_argument("--scratch", type=Path, default=Path("checkpoints"), help="where 30 GB have room")
    parser.add_argument("--scale", type=int, default=1, help="divide the LLM's layers, for a quick look")
    parser.add_argument("--zeros", action="store_true", help="weights of zeros, in files with holes")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(json.loads(args.run))
        return
    lines = [machine_description(torch.device("cpu")), ""]
    with tempfile.TemporaryDirectory(dir=args.scratch.resolve(), prefix=".bench-") as name:
        scratch = Path(name)
        (scratch / "in").mkdir()
        # In a process of its own: what it held would count as ours.
        place = str(scratch / "in")
        code = f"from convert import *; print(write_checkpoint(Path({place!r}), {args.scale}, {args.zeros}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
        )
        size = int(done.stdout.splitlines()[-1])
        rows = [("convert", measured("convert", str(scratch / "in"), str(scratch / "ours")))]
        shutil.rmtree(scratch / "in")
        if args.zeros:
            for shard in (scratch / "ours").glob("*.safetensors"):
                dig_holes(shard)
        rows.append(("export --to llava", measured("export", str(scratch / "ours"), str(scratch / "plain"))))
    options = (f" --scale {args.scale}" if args.scale > 1 else "") + " --zeros" * args.zeros
    lines += [
        f"Command: `python bench/convert.py{options}`. A checkpoint of the released "
        f"Vicuna-7B model's names and shapes, {size / 1e9:.2f} GB of bf16 "
        f"{'zeros' if args.zeros else 'noise'} in two `.bin` shards, tower inside.",
        "",
        "| command | seconds | CPU seconds | peak resident memory |",
        "|---|---:|---:|---:|",
    ]
    for command, row in rows:
        lines.append(f"| `vwlmm {command}` | {row['seconds']:.0f} | {row['cpu']:.0f} | {row['peak'] / 1e9:.2f} GB |")
    lines += [
        "",
        "Peak: the kernel's high-water mark of the whole process, Python and torch included. Every byte is read once,",
    ]
    lines += [
        "compared with the archive's CRC-32, hashed (SHA-256) and written once; `export` also checks the hashes first."
    ]
    if args.out:
        write_section(args.out, "Converting a 7B checkpoint", "\n".join(lines))
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
