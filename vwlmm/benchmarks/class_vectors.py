"""The text side of zero-shot classification: sentences about each class, and the one vector that stands for it.

Templates: freeze-align's single one, CLIP's (from the user's install of open_clip or CLIP_benchmark), or a file.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from torch import Tensor

from vwlmm import zero_shot

from .official_files import read_json, read_text

# Names of CLIP_benchmark's JSON where they are not ours.
_CLIP_NAMES = {
    "aircraft": "fgvc_aircraft",
    "flowers102": "flowers",
    "imagenet": "imagenet1k",
    "imagenetv2": "imagenet1k",
}


def sentences(class_names: Sequence[str], templates: str, file: Path | None, name_of_set: str) -> list[list[str]]:
    """What is said of each class, in the order of the classes.

    Args:
        templates: "single", "clip" or "file".
        file: JSON: a list of templates with `{}` or `{c}` for the class, or an object from class name to sentences.

    Raises:
        ValueError: the file is laid out otherwise, or misses a class.
        ImportError: CLIP's templates are wanted and neither open_clip nor CLIP_benchmark is installed.
    """
    if templates == "single":
        patterns: Any = [zero_shot.SINGLE]
    elif templates == "clip":
        patterns = _clip_templates(name_of_set)
    elif file is not None:
        patterns = read_json(file)
        if isinstance(patterns, dict):
            return _descriptions(class_names, patterns, file)
    else:
        raise ValueError(
            "classification: templates=file needs template_file, a JSON list of templates or class sentences."
        )
    if not isinstance(patterns, list) or not patterns or not all(map(_is_template, patterns)):
        raise ValueError(
            f"{file}: expected a list of templates with {{}} or {{c}} in each, found {str(patterns)[:60]!r}."
        )
    return [[pattern.replace("{c}", "{}").replace("{}", name) for pattern in patterns] for name in class_names]


def class_vectors(embed: Callable[[list[str]], Tensor], groups: Sequence[Sequence[str]], how: str) -> Tensor:
    """One vector a class from unit vectors of its sentences, `[classes, dim]`.

    Args:
        embed: texts → `[texts, dim]`.
        how: "mean": the mean of unit vectors, of length 1 again (CLIP). "released": freeze-align's code, where lists are
            filled up to the longest by their first sentence and the mean keeps its length, which enters the ranking.
    """
    prompts = {str(number): list(group) for number, group in enumerate(groups)}
    longest = max(len(group) for group in groups)
    released = how == "released"
    return zero_shot.class_vectors(embed, prompts, renormalise=not released, pad_to=longest if released else None)


def read_class_names(path: Path) -> list[str]:
    """Names in the order of class numbers: a JSON list, or one a line."""
    text = read_text(path).strip()
    names = json.loads(text) if text.startswith("[") else text.splitlines()
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{path}: expected class names, a JSON list or one a line.")
    return [name.strip() for name in names]


def _is_template(pattern: Any) -> bool:
    return isinstance(pattern, str) and ("{}" in pattern or "{c}" in pattern)


def _descriptions(class_names: Sequence[str], found: Mapping[str, Any], file: Path) -> list[list[str]]:
    for name in class_names:
        group = found.get(name)
        if not isinstance(group, list) or not group or not all(isinstance(text, str) for text in group):
            raise ValueError(f"{file}, field {name}: expected a list of sentences about this class, found {group!r}.")
    return [list(found[name]) for name in class_names]


def _clip_templates(name_of_set: str) -> list[str]:
    """The 80 of ImageNet, or those of the set, from whichever package is there."""
    name = _CLIP_NAMES.get(name_of_set, name_of_set)
    package = find_spec("clip_benchmark")
    if package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0])
        known = read_json(folder / "datasets" / "en_zeroshot_classification_templates.json")
        if name in known:
            return list(known[name])
    package = find_spec("open_clip")
    if package is not None and package.submodule_search_locations and name == "imagenet1k":
        # The file alone: importing the package needs torchvision.
        path = Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"
        spec = spec_from_file_location("_open_clip_zero_shot_metadata", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return [template("{}") for template in module.OPENAI_IMAGENET_TEMPLATES]
    raise ImportError(
        f"CLIP's templates for {name_of_set!r} come from packages: pip install --no-deps clip_benchmark (or open_clip_torch "
        "for ImageNet), or give templates=file with template_file."
    )
