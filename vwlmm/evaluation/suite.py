"""Suites: several benchmarks and how they are asked, in one YAML file (`eval/suites/*.yaml`), or from the command line."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vwlmm.benchmarks import Benchmark, get_benchmark
from vwlmm.evaluation.settings import EvaluationConfig

ENTRY_KEYS = ("name", "options", "data")
SETTING_KEYS = tuple(f.name for f in dataclasses.fields(EvaluationConfig))


@dataclass(frozen=True)
class Entry:
    """One benchmark of a suite: itself, where its files are (None: as for the whole run), and settings of its own."""

    benchmark: Benchmark
    data: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """What one call of `vwlmm eval` asks."""

    entries: tuple[Entry, ...]
    data: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def read_suite(path: Path) -> Suite:
    """Reads a suite: `benchmarks` (names, or mappings with name, options, data), `data`, and settings for all of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: broken YAML, an unknown key, benchmark or option.
    """
    from vwlmm.config import nearest

    if not path.is_file():
        raise FileNotFoundError(f"A suite was expected at {path}: there is no such file. eval/suites holds ours.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as problem:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list) or not content["benchmarks"]:
        raise ValueError(f"{path}: a suite is a mapping with a list `benchmarks` that is not empty.")
    known = ["benchmarks", "data", *SETTING_KEYS]
    for key in content:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}. {nearest(str(key), known)}")
    try:
        entries = tuple(_entry(value) for value in content["benchmarks"])
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    settings = {key: content[key] for key in SETTING_KEYS if key in content}
    return Suite(entries, _path(content.get("data")), settings)


def read_names(names: list[str]) -> tuple[Entry, ...]:
    """Benchmarks of the command line, each `NAME` or `NAME:option=value,option=value`.

    Raises:
        ValueError: an unknown name or option.
    """
    entries = []
    for text in names:
        name, _, rest = text.partition(":")
        options: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"--benchmark is NAME or NAME:option=value,…: got {text!r}.")
            options[key.strip()] = yaml.safe_load(value)
        entries.append(Entry(get_benchmark(name, **options)))
    return tuple(entries)


def _entry(value: Any) -> Entry:
    from vwlmm.config import nearest

    if isinstance(value, str):
        return Entry(get_benchmark(value))
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f"benchmarks: expected a name, or a mapping with `name`; got {value!r}.")
    known = [*ENTRY_KEYS, *SETTING_KEYS]
    for key in value:
        if key not in known:
            raise ValueError(f"benchmarks: {value['name']}: unknown key {key!r}. {nearest(str(key), known)}")
    benchmark = get_benchmark(value["name"], **(value.get("options") or {}))
    return Entry(benchmark, _path(value.get("data")), {key: value[key] for key in SETTING_KEYS if key in value})


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)
