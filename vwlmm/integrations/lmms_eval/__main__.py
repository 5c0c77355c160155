"""Writes our benchmarks as tasks of lmms-eval, from the official files, and prints how to run them."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Writes one YAML and one JSONL file a benchmark into `--out`."""
    from vwlmm.evaluation.suite import read_names
    from vwlmm.integrations.lmms_eval.questions import write_task

    parser = argparse.ArgumentParser(
        prog="python -m vwlmm.integrations.lmms_eval",
        description=__doc__,
        epilog="example: python -m vwlmm.integrations.lmms_eval --benchmark pope textvqa:ocr=false --data data --out tasks",
    )
    parser.add_argument("--benchmark", nargs="+", required=True, metavar="NAME", help="as for vwlmm eval")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the official files")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the tasks' files")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only N questions, drawn as vwlmm eval --limit draws them"
    )
    options = parser.parse_args(arguments)
    try:
        names = [
            write_task(entry.benchmark, options.data, options.out, options.limit)
            for entry in read_names(options.benchmark)
        ]
    except (ValueError, OSError) as problem:
        print(f"vwlmm: {problem}", file=sys.stderr)
        return 1
    print(
        f"lmms-eval --model vwlmm --model_args pretrained=MODEL --tasks {','.join(names)} "
        f"--include_path {options.out.resolve()} --batch_size 1 --output_path results"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
