"""The model card: metadata that the Hub reads, and the text a reader needs, both from the same facts."""

import math
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vwlmm.demo.charts import curves_of, format_number
from vwlmm.hub.facts import Facts, Stage

CURVES_FILE, WORDS_FILE, LOG_FILE = "training_curves.png", "visual_words.png", "training_log.json"


def make_card(repo: str, facts: Facts, *, licence: str | None, files: set[str]) -> ModelCard:
    """The card of a model, to be saved as README.md.

    Args:
        repo: `user/name`.
        facts: from `vwlmm.hub.facts.gather`.
        licence: of the whole, as a Hub licence id; None refers to the parts' licences.
        files: which of the generated pictures are there.
    """
    name = repo.split("/")[-1]
    text = "\n\n".join(
        section
        for section in (
            f"# {name}",
            _introduction(facts),
            _loading(repo, facts),
            _words(files),
            _evaluation(facts),
            _training(facts, files),
            _licences(facts, licence),
        )
        if section
    )
    return ModelCard(f"---\n{_metadata(name, facts, licence).to_yaml()}\n---\n\n{text}\n")


def _metadata(name: str, facts: Facts, licence: str | None) -> ModelCardData:
    plain = facts.config.get("model_type") == "llava"
    fields: dict[str, Any] = {
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers" if plain else "vwlmm",
        "tags": ["vwlmm", "visual-words", "llava", "multimodal"],
        "base_model": facts.hub_parts or None,
        "license": licence or "other",
    }
    if licence is None:
        fields |= {"license_name": "licences-of-the-parts", "license_link": "README.md#licences"}
    results = [result for result in _eval_results(facts) if math.isfinite(result.metric_value)]
    if results:
        fields |= {"model_name": name, "eval_results": results}
    return ModelCardData(**fields)


def _eval_results(facts: Facts) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Image-Text-to-Text",
            dataset_type=result["benchmark"],
            dataset_name=result.get("title") or result["benchmark"],
            metric_type=str(metric),
            metric_name=str(metric).replace("_", " "),
            metric_value=float(value),
        )
        for result in facts.results
        for metric, value in result["metrics"].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _introduction(facts: Facts) -> str:
    text, vision = facts.config.get("text_config", {}), facts.config.get("vision_config", {})
    reads = (
        "The language model reads mixtures of its own word embeddings in place of image features (pseudo-image features)."
        if facts.config.get("pseudo_image_features")
        else "Every image patch also has a probability distribution over the language model's vocabulary, its visual word."
    )
    return (
        f"A LLaVA with a VM head ([visual words, arXiv 2403.07720](https://arxiv.org/abs/2403.07720)), made with "
        f"vwlmm: a `{vision.get('model_type')}` tower, a `{text.get('model_type')}` language "
        f"model of {text.get('num_hidden_layers')} layers, {text.get('hidden_size')} wide, {text.get('vocab_size')} words. "
        f"{reads}"
    )


def _loading(repo: str, facts: Facts) -> str:
    with_us = (
        f'from vwlmm import load_model\n\nmodel, processor = load_model("{repo}")        # with the VM head\n\n'
        f"# vwlmm chat {repo} --image a.png\n# vwlmm words {repo} a.png --out words.html"
    )
    if facts.config.get("model_type") == "llava":
        without = (
            "```python\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f'model = AutoModelForImageTextToText.from_pretrained("{repo}")    # a plain LLaVA: `vm_head.weight` is not used\n'
            f'processor = AutoProcessor.from_pretrained("{repo}")\n```'
        )
    else:
        without = (
            "Plain transformers cannot give this model's logits from this folder, and says that it does not know "
            f"`visual_word_llava`. `vwlmm export {repo} OUT --to llava` makes a plain LLaVA where that is possible, and says "
            "why where it is not."
        )
    return f"## Loading\n\nWith vwlmm:\n\n```python\n{with_us}\n```\n\nWithout vwlmm:\n\n{without}"


def _words(files: set[str]) -> str:
    if WORDS_FILE not in files:
        return ""
    return f"## Visual words\n\nThe likeliest word of every patch:\n\n![visual words]({WORDS_FILE})"


def _evaluation(facts: Facts) -> str:
    lines = [
        f"| {result.dataset_name} | {result.metric_name} | {result.metric_value:.6g} |"
        for result in _eval_results(facts)
    ]
    held_out = facts.stages[0].metrics if facts.stages else {}
    lines += [
        f"| held-out rows of the training data | {name.removeprefix('eval_')} | {value:.6g} |"
        for name, value in held_out.items()
        if name.startswith("eval_") and not name.endswith(("runtime", "per_second"))
    ]
    if not lines:
        return "## Evaluation\n\nNo result of a benchmark lies beside this model."
    return "\n".join(["## Evaluation", "", "| data | metric | value |", "|---|---|---:|", *lines])


def _training(facts: Facts, files: set[str]) -> str:
    if not facts.stages:
        return "## Training\n\nNo recipe lies beside this model, so nothing is said of how it was trained."
    parts = ["## Training"]
    if CURVES_FILE in files:
        parts.append(f"![training curves]({CURVES_FILE})")
    parts += [_stage(stage, number) for number, stage in enumerate(facts.stages)]
    return "\n\n".join(parts)


def _stage(stage: Stage, number: int) -> str:
    recipe = yaml.safe_dump(stage.recipe, sort_keys=False, allow_unicode=True).strip()
    name = "This run" if number == 0 else "The run that this one went on from" if number == 1 else "And the one before"
    lines = [f"### {name}", "", "| data file | SHA-256 |", "|---|---|"]
    lines += [f"| `{file}` | {digest if ' ' in digest else f'`{digest}`'} |" for file, digest in stage.data.items()]
    curves = [curve for curve in curves_of(stage.history) if curve.training]
    if curves:
        lines += ["", "| term | first logged | last logged |", "|---|---:|---:|"]
        for curve in curves:
            (first, start), (last, end) = curve.training[0], curve.training[-1]
            lines.append(f"| {curve.title} | {_at(start, first)} | {_at(end, last)} |")
    return "\n".join([*lines, "", "The resolved recipe, paths of the machine left out:", "", "```yaml", recipe, "```"])


def _at(value: float, step: float) -> str:
    return f"{format_number(value) if math.isfinite(value) else value} (step {format_number(step)})"


def _licences(facts: Facts, licence: str | None) -> str:
    lines = [f"| `{part}` | {told} |" for part, told in facts.parts.items()]
    whole = (
        f"The whole is published under {licence}." if licence else "This model falls under the licences of its parts."
    )
    table = ["", "| part | licence |", "|---|---|", *lines] if lines else ["", "Its parts are not on record here."]
    return "\n".join(["## Licences", "", whole, *table, "", "vwlmm itself: Apache-2.0."])


def draw_curves(stage: Stage, out: Path) -> bool:
    """Draws what a run logged, one panel a term; False when it logged nothing that can be drawn."""
    curves = [curve for curve in curves_of(stage.history) if len(curve.training) > 1]
    if not curves:
        return False
    from matplotlib.figure import Figure

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, curve in zip(panels, curves, strict=False):
        for points, style, label in ((curve.training, "-", "training"), (curve.held_out, "o--", "held out")):
            if points:
                panel.plot([x for x, _ in points], [y for _, y in points], style, label=label)
        panel.set_title(curve.title, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        if curve.held_out:
            panel.legend(fontsize=8)
    for panel in panels[len(curves) :]:
        panel.remove()
    figure.savefig(out, dpi=110)
    return True
