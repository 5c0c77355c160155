"""`vwlmm eval MODEL --benchmark NAME …`: a model's answers to benchmarks, scored by their official rules."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from vwlmm.options import add_device, add_dtype

EXAMPLE = """\
examples:
  vwlmm eval checkpoints/demo/4_visual_words --benchmark embedded_vqa --out results/demo --batch-size 16
  vwlmm eval checkpoints/visual_words/4_visual_words --suite eval/suites/vw_lmm_table1.yaml --data data --out results/table1
  torchrun --nproc_per_node 8 eval/evaluate.py MODEL --benchmark vqav2 --data data --out results/vqav2

An interrupted run goes on when it is started again with the same --out. `docs/evaluation.md` says which files each
benchmark reads and where they are published."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `vwlmm eval`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", nargs="?", help="folder or hub id of the model")
    parser.add_argument(
        "--benchmark",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="benchmarks to ask, options behind a colon: textvqa:ocr=false; repeatable",
    )
    parser.add_argument("--suite", type=Path, metavar="F.yaml", help="benchmarks and settings of a file in eval/suites")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the official files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for answers, results and the table")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N questions, drawn from the whole file")
    parser.add_argument("--batch-size", type=int, metavar="N", help="questions at once (default: 1, as the papers)")
    add_dtype(parser, default=None)
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of an answer (default: the benchmark's own)")
    parser.add_argument("--num-loaders", type=int, metavar="N", help="threads that decode pictures (default: 4)")
    add_device(parser)
    parser.add_argument("--shard", metavar="I/N", help="answer every N-th question from the I-th (0 to N − 1) on")
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out, and name, benchmarks whose files are not there"
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks and leave")


def main(args: argparse.Namespace) -> int:
    """Asks every benchmark in turn and prints the table; 0 also when other shards still have to answer."""
    if args.list:
        return list_benchmarks()
    entries, data, settings = _what_to_ask(args)
    if args.model is None or args.out is None:
        raise ValueError("vwlmm eval needs a MODEL and --out DIR.")
    from vwlmm.evaluation.runner import LoadedModel, evaluate, run_name
    from vwlmm.evaluation.settings import EvaluationConfig
    from vwlmm.evaluation.shards import local_device, read_shard

    shard = read_shard(args.shard)
    # All that can be missing is found before the model, which takes the longest, is loaded.
    entries, files = _with_files(entries, data, args.skip_missing)
    configs = [EvaluationConfig(**{**settings, **entry.settings, **_given(args)}) for entry in entries]
    results: list[Any] = []
    loaded: dict[str, LoadedModel] = {}
    for entry, config, official in zip(entries, configs, files, strict=True):
        if config.dtype not in loaded:
            loaded.clear()  # one model at a time
            loaded[config.dtype] = LoadedModel.load(args.model, config.dtype, args.device or local_device())
        folder = args.out / run_name(entry.benchmark)
        results.append(evaluate(loaded[config.dtype], entry.benchmark, official, folder, config, shard))
    return _report(args.out, results, connected=shard.connected and shard.rank > 0)


def list_benchmarks() -> int:
    """Prints every benchmark with its options."""
    from vwlmm.benchmarks import BENCHMARKS, get_benchmark

    for name in sorted(BENCHMARKS):
        benchmark = get_benchmark(name)
        options = ", ".join(f"{key}={value}" for key, value in benchmark.options.items())
        print(f"{name:24} {benchmark.title}" + (f"  [{options}]" if options else ""))
    return 0


def _what_to_ask(args: argparse.Namespace) -> tuple[list[Any], Path | None, dict[str, Any]]:
    from vwlmm.evaluation.runner import run_name
    from vwlmm.evaluation.suite import read_names, read_suite

    suite = read_suite(args.suite) if args.suite else None
    entries = [*(suite.entries if suite else ()), *read_names(args.benchmark)]
    if not entries:
        raise ValueError("Nothing to ask: name benchmarks with --benchmark or a file with --suite; --list shows them.")
    names = [run_name(entry.benchmark) for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"Benchmark {twice!r} is asked twice: once is enough, or give the second other options.")
    return entries, args.data or (suite.data if suite else None), dict(suite.settings) if suite else {}


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the command line, which win over a suite's."""
    from vwlmm.evaluation.settings import EvaluationConfig

    names = [field.name for field in dataclasses.fields(EvaluationConfig)]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _with_files(entries: list[Any], data: Path | None, skip_missing: bool) -> tuple[list[Any], list[Any]]:
    """The benchmarks with their official files; those without are an error, or named and left out."""
    found, files = [], []
    for entry in entries:
        try:
            files.append(entry.benchmark.files(_data_of(entry, data)))
            found.append(entry)
        except FileNotFoundError as problem:
            if not skip_missing:
                raise
            print(f"left out: {problem}", flush=True)
    if not found:
        raise FileNotFoundError("No benchmark is left to ask: the files of none are there.")
    return found, files


def _data_of(entry: Any, data: Path | None) -> Path:
    chosen = entry.data or data or entry.benchmark.default_data
    if chosen is None:
        raise ValueError(
            f"{entry.benchmark.name} reads official files: say where they are with --data DIR (docs/evaluation.md lists them)."
        )
    return Path(chosen)


def _report(out: Path, results: list[Any], connected: bool) -> int:
    from vwlmm.evaluation.report import TABLE_FILE, write_table

    finished = [result for result in results if result is not None]
    if connected:
        return 0
    if len(finished) < len(results):
        print(f"{len(finished)} of {len(results)} benchmarks are complete; run the other shards, then this one again.")
        return 0
    print("\n" + write_table(out / TABLE_FILE, finished))
    print(f"Written: {out / TABLE_FILE}, and a folder with answers, details and settings for each benchmark.")
    return 0
