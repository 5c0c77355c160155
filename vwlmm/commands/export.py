"""`vwlmm export MODEL OUT --to llava|gguf`: a folder or file that others serve, with nothing of vwlmm."""

import argparse
import sys

EXAMPLE = """\
examples:
  vwlmm export checkpoints/visual_words/4_final checkpoints/llava --to llava
      a plain LlavaForConditionalGeneration with processor and chat template; the logits do not change
  vwlmm export checkpoints/visual_words/4_final checkpoints/gguf --to gguf --converter llama.cpp/convert_hf_to_gguf.py
      GGUF files by llama.cpp's own converter, read back and compared
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Write a model as a plain LLaVA of transformers, or as GGUF for llama.cpp."
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model")
    parser.add_argument("out", metavar="OUT", help="new folder")
    parser.add_argument("--to", choices=("llava", "gguf"), default="llava", help="default: llava")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="GB", help="size of a file (default: 5)")
    parser.add_argument(
        "--converter",
        metavar="FILE",
        help="llama.cpp's convert_hf_to_gguf.py (default: looked for on PATH and in ./llama.cpp)",
    )
    parser.add_argument("--outtype", default="auto", help="of the GGUF: f32, f16, bf16, auto (default)")


def main(args: argparse.Namespace) -> int:
    """Exports, and says what was changed on the way."""
    from vwlmm.weights.export import export_llava

    if args.to == "gguf":
        from vwlmm.weights.gguf import export_gguf

        for line in export_gguf(args.model, args.out, converter=args.converter, outtype=args.outtype):
            print(line)
        return 0
    size = int(args.max_shard_gb * 1e9)
    for note in export_llava(args.model, args.out, max_shard_bytes=size, progress=sys.stderr.isatty()):
        print(note)
    print(f"A plain LLaVA is in {args.out}: AutoModelForImageTextToText.from_pretrained({args.out!r})")
    return 0
