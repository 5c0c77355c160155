"""The folder as the Hub gets it: the model's files by name, and what is generated beside them."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from vwlmm.hub.card import CURVES_FILE, LOG_FILE, WORDS_FILE, draw_curves, make_card
from vwlmm.hub.facts import Facts

MODEL_FILES = re.compile(
    r"config\.json|generation_config\.json|.*\.safetensors|.*\.safetensors\.index\.json|checksums\.json|conversion\.json|"
    r"adapter_config\.json|(pre|image_|video_)?processor_config\.json|tokenizer.*\.(json|model)|special_tokens_map\.json|"
    r"added_tokens\.json|vocab\.(json|txt)|merges\.txt|spiece\.model|chat_template\.(jinja|json)|preprocessor_config\.json"
)


def stage(
    folder: Path, target: Path, repo: str, facts: Facts, *, licence: str | None, image: Path | None, word_map: bool
) -> list[str]:
    """Fills `target`; returns the files of the folder that are no part of the model and were left out."""
    left_out = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and MODEL_FILES.fullmatch(path.name):
            _link(path, target / path.name)
        elif path.name not in ("recipe.yaml", "trainer_state.json"):  # these are published in another form
            left_out.append(path.name + "/" * path.is_dir())
    generated = set()
    if facts.stages:
        run = facts.stages[0]
        text = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
        (target / "recipe.yaml").write_text(text, encoding="utf-8")
        if run.history:
            (target / LOG_FILE).write_text(json.dumps(run.history, indent=1) + "\n")
        if draw_curves(run, target / CURVES_FILE):
            generated.add(CURVES_FILE)
    if word_map and _draw_words(folder, target / WORDS_FILE, image):
        generated.add(WORDS_FILE)
    make_card(repo, facts, licence=licence, files=generated).save(target / "README.md")
    return left_out


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system can, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _draw_words(folder: Path, target: Path, image: Path | None) -> bool:
    """The visual-word map of a picture; False for a plain LLaVA, which has no words."""
    from vwlmm.loading import has_vm_head, load_model
    from vwlmm.visualize import draw_png, visual_word_map

    if not has_vm_head(folder):
        return False
    model, processor = load_model(folder)
    picture = image or _sample_picture(target.with_name("sample.png"))
    try:
        draw_png(visual_word_map(model, processor, picture, top_k=1), target)
    finally:
        if image is None:
            picture.unlink()
    return True


def _sample_picture(path: Path) -> Path:
    """A red disc, a green square and a blue triangle: a picture that belongs to nobody."""
    picture: Any = Image.new("RGB", (336, 336), (245, 244, 238))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((30, 30, 160, 160), fill=(214, 48, 49))
    draw.rectangle((190, 50, 306, 166), fill=(39, 150, 80))
    draw.polygon([(168, 190), (80, 310), (256, 310)], fill=(42, 82, 190))
    picture.save(path)
    return path
