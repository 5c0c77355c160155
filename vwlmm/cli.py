"""The command line: `vwlmm COMMAND --help` says what a command does, with an example."""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

# Command → module with add_arguments(parser) and main(args) → exit code. A module is imported when its command is called.
COMMANDS = {
    "train": ("vwlmm.commands.train", "train a recipe"),
    "plan": ("vwlmm.commands.plan", "parameters, tokens, steps and memory of a recipe, before it is run"),
    "data check": ("vwlmm.data.check", "find every bad row of a data file"),
    "data inspect": ("vwlmm.commands.inspect", "what the model reads and what is scored"),
    "data curate": ("vwlmm.curation", "choose the pairs that cover a list of concepts"),
    "data word-prior": ("vwlmm.commands.word_prior", "how often each word stands in the training captions, for VLAP"),
    "select-encoders": ("vwlmm.select_encoders", "which vision and text encoder see the same pairs most alike"),
    "chat": ("vwlmm.chat", "talk with a model about pictures"),
    "words": ("vwlmm.visualize", "the visual words of every patch, drawn over the picture"),
    "arithmetic": ("vwlmm.commands.arithmetic", "nearest words and a caption of a sum of pictures"),
    "zero-shot": ("vwlmm.commands.zero_shot", "classify labelled pictures by the names of their classes"),
    "tsne": ("vwlmm.tsne", "a map of images and captions before and after two towers were joined"),
    "eval": ("vwlmm.commands.eval", "score a model on benchmarks"),
    "score": ("vwlmm.commands.score", "score a finished answers file of a benchmark"),
    "convert": ("vwlmm.commands.convert", "published VW-LMM and LLaVA checkpoints → a folder of ours"),
    "export": ("vwlmm.commands.export", "a plain LLaVA of transformers, or GGUF"),
    "merge": ("vwlmm.commands.merge", "LoRA adapters → a whole model"),
    "publish": ("vwlmm.commands.publish", "a model on the Hub, with its card"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(1)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; a user's mistake is one line on stderr and exit code 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = next((c for c in sorted(COMMANDS, key=len, reverse=True) if arguments[: len(c.split())] == c.split()), None)
    if name is None:
        return _overview(arguments)
    module = import_module(COMMANDS[name][0])
    parser = _Parser(prog=f"vwlmm {name}", description=COMMANDS[name][1])
    module.add_arguments(parser)
    return _run(module.main, parser.parse_args(arguments[len(name.split()) :]))


def _run(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    try:
        return command(args)
    except (ValueError, OSError, ImportError) as problem:
        print(f"vwlmm: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vwlmm: interrupted", file=sys.stderr)
        return 130


def _overview(arguments: list[str]) -> int:
    lines = ["usage: vwlmm COMMAND …", "", *(f"  {name:14} {text}" for name, (_, text) in COMMANDS.items())]
    lines += [
        "",
        "`vwlmm COMMAND --help` shows a command's options and an example. To begin: vwlmm train train/forkme.yaml",
    ]
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    if arguments and not asked:
        if arguments[0] == "--version":
            from vwlmm import __version__

            print(__version__)
            return 0
        import difflib

        near = difflib.get_close_matches(" ".join(arguments[:2]), COMMANDS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"vwlmm: no command {arguments[0]!r}.{hint} See vwlmm --help.", file=sys.stderr)
        return 1
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 1


if __name__ == "__main__":
    sys.exit(main())
