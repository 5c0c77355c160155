"""`vwlmm convert SRC OUT`: published VW-LMM and LLaVA checkpoints become folders that every command reads."""

import argparse
import sys

EXAMPLE = """\
examples:
  vwlmm convert checkpoints/VW-LMM-Vicuna-7b checkpoints/vw-lmm-vicuna-7b
      released VW-LMM weights, told by their files; a Hub id does as well
  vwlmm convert liuhaotian/llava-v1.5-7b checkpoints/llava-7b --vm-head-init lm_head
      an original LLaVA gets a VM head: the start of stage 3
  vwlmm convert llava-pretrain/mm_projector.bin checkpoints/aligned --language-model lmsys/vicuna-7b-v1.5 \\
      --vision-tower openai/clip-vit-large-patch14-336
      the projector that LLaVA's stage 1 saves alone

OUT appears when it is whole, with conversion.json, which names every key: mapped, created, or ignored with the reason.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Turn a published checkpoint into a vwlmm folder, tensor by tensor. Pickles are read for tensors only, and no code of "
        "a checkpoint is run."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("source", metavar="SRC", help="folder, Hub id, or mm_projector.bin")
    parser.add_argument("out", metavar="OUT", help="new folder")
    parser.add_argument("--vision-tower", metavar="CLIP", help="folder or Hub id (default: as the checkpoint says)")
    parser.add_argument(
        "--language-model", metavar="LLM", help="of a projector file (default: as its config.json says)"
    )
    parser.add_argument("--chat-template", metavar="NAME", help="vicuna_v1, mistral, … (default: by the LLM)")
    parser.add_argument(
        "--vm-head-init",
        default="random",
        metavar="START",
        help="of a VM head that is not there: random (default), lm_head or word_embeddings",
    )
    parser.add_argument(
        "--pseudo-image-features",
        action=argparse.BooleanOptionalAction,
        help="the LLM reads mixtures of word embeddings (default: as the checkpoint's class says)",
    )
    parser.add_argument("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16 (default: the LLM's own)")
    parser.add_argument("--seed", type=int, default=0, help="of a random VM head (default: 0)")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="GB", help="size of a file (default: 5)")


def main(args: argparse.Namespace) -> int:
    """Converts, and prints the report."""
    from vwlmm.weights.convert import ConvertConfig, convert
    from vwlmm.weights.parts import Wishes

    wishes = Wishes(args.vision_tower, args.language_model, args.chat_template, args.pseudo_image_features)
    config = ConvertConfig(args.vm_head_init, args.dtype, args.seed, int(args.max_shard_gb * 1e9))
    report = convert(args.source, args.out, wishes=wishes, config=config, progress=sys.stderr.isatty())
    print(f"{report}\nThe model is in {args.out}; every key: {args.out}/conversion.json")
    return 0
