"""The report is one file that says what was measured, and its curves are the numbers that were logged."""

import base64
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from vwlmm.demo.charts import HEIGHT, TOP, Curve, curves_of, format_number, line_chart, nice_ticks
from vwlmm.demo.easy_vqa import accuracy
from vwlmm.demo.report import write_report

HISTORY = [
    {"step": 10, "epoch": 0.1, "loss": 4.0, "lm_loss": 3.0, "vm_loss": 1.0, "learning_rate": 1e-3, "grad_norm": 0.5},
    {"step": 20, "epoch": 0.2, "loss": 2.0, "lm_loss": 1.5, "vm_loss": 0.5, "learning_rate": 1e-3, "grad_norm": 0.5},
    {"step": 20, "eval_loss": 2.5, "eval_runtime": 1.0, "eval_samples_per_second": 7.0},
    {"step": 20, "train_runtime": 9.0, "train_loss": 3.0, "total_flos": 1e9},
]


class Page(HTMLParser):
    """Tags that are opened and closed, attributes and text of a page."""

    VOID = ("meta", "img", "br", "line", "path", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, class_: str = "") -> list[dict]:
        return [a for t, a in self.tags if t == tag and (not class_ or class_ in (a.get("class") or "").split())]


def score(right: int, count: int) -> dict:
    rows = [{"question": "what shape?", "expected": "circle", "answer": "circle"}] * right
    return accuracy(rows + [{"question": "what shape?", "expected": "circle", "answer": "box"}] * (count - right))


@pytest.fixture
def parts(tmp_path: Path) -> dict:
    for name in ("red", "blue", "before", "after"):
        Image.new("RGB", (8, 8), {"before": "teal", "after": "black"}.get(name, name)).save(tmp_path / f"{name}.png")
    return {
        "curves": {"1 align": HISTORY, "2 visual words": HISTORY[:2]},
        "scores": {
            "real": score(96, 100),
            "blank": score(61, 100),
            "shuffled": score(55, 100),
            "blind": score(67, 100),
        },
        "samples": [
            {"image": tmp_path / "red.png", "question": "what color is it?", "expected": "red", "answer": "Red."},
            {"image": tmp_path / "blue.png", "question": "what color is <b>it?", "expected": "blue", "answer": "teal"},
        ],
        "word_maps": {"before": [tmp_path / "before.png"], "after": [tmp_path / "after.png"]},
        "settings": {"training": {"learning_rate": 0.002}, "seed": 7},
        "timing": {"1 align": 123.4, "scoring": 9.0},
    }


def page_of(tmp_path: Path, parts: dict, **others) -> Page:
    return Page(write_report(tmp_path / "out" / "report.html", **(parts | others)).read_text())


def test_the_page_is_one_file_without_network_or_script(tmp_path, parts):
    out = write_report(tmp_path / "out" / "report.html", **parts)
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    page = Page(out.read_text())
    assert page.all("script") == page.all("link") == []
    addresses = [a[key] for _, a in page.tags for key in ("src", "href") if key in a]
    assert len(addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "url(" not in out.read_text()
    assert "@import" not in out.read_text()


def test_every_tag_that_is_opened_is_closed(tmp_path, parts):
    assert page_of(tmp_path, parts).open == []


def test_pictures_are_inside_byte_for_byte(tmp_path, parts):
    sources = [img["src"].partition(",")[2] for img in page_of(tmp_path, parts).all("img")]
    expected = [tmp_path / f"{name}.png" for name in ("red", "blue", "before", "after")]
    assert [base64.b64decode(source) for source in sources] == [path.read_bytes() for path in expected]


def test_all_four_scores_stand_in_the_table(tmp_path, parts):
    text = page_of(tmp_path, parts).text
    for share in ("96.0 %", "61.0 %", "55.0 %", "67.0 %"):
        assert share in text
    assert "+35.0 points over a grey picture and +41.0 points over another row's picture" in text


def test_a_score_that_does_not_fall_without_the_picture_is_told_as_it_is(tmp_path, parts):
    parts["scores"]["blank"] = score(97, 100)
    assert "-1.0 points over a grey picture" in page_of(tmp_path, parts).text


def test_wrong_answers_are_marked_in_words_and_right_ones_are_not(tmp_path, parts):
    page = page_of(tmp_path, parts)
    assert [figure["class"] for figure in page.all("figure", "sample")] == ["sample right", "sample wrong"]
    assert "wrong: expected blue" in page.text
    assert "wrong: expected red" not in page.text


def test_what_a_model_or_a_row_says_is_shown_and_not_obeyed(tmp_path, parts):
    parts["samples"][0]["answer"] = "<script>alert(1)</script>"
    page = page_of(tmp_path, parts)
    assert "<script>alert(1)</script>" in page.text
    assert "what color is <b>it?" in page.text
    assert page.all("script") == []


def test_every_term_of_every_stage_has_a_chart_and_the_clock_has_none(tmp_path, parts):
    page = page_of(tmp_path, parts)
    assert [svg["aria-label"].partition(":")[0] for svg in page.all("svg")] == [
        "total loss", "next-token loss (lm)", "visual-word loss (vm)",
        "total loss", "next-token loss (lm)", "visual-word loss (vm)",
    ]  # fmt: skip


def test_settings_timing_versions_and_the_command_are_told(tmp_path, parts):
    text = page_of(tmp_path, parts, command="make demo").text
    for told in ("training.learning_rate", "0.002", "seed", "2 min 3 s", "9.0 s", "transformers", "make demo"):
        assert told in text


def test_stages_tell_their_steps_and_what_they_learn(tmp_path, parts):
    text = page_of(tmp_path, parts, stages={"1 align": "The projector learns."}, summary="Two things meet.").text
    assert "1 align 20 steps, 2 min 3 sThe projector learns." in text
    assert "Two things meet." in text


def test_the_page_can_be_light_or_dark(tmp_path, parts):
    page = write_report(tmp_path / "r.html", **parts).read_text()
    light, _, dark = page.partition("@media (prefers-color-scheme: dark)")
    names = set(re.findall(r"(--[a-z]+):", light.partition(":root")[2].partition("}")[0]))
    assert names == set(re.findall(r"(--[a-z]+):", dark.partition("} }")[0]))
    assert "--ink" in names


def test_parts_that_are_empty_leave_no_empty_section(tmp_path, parts):
    empty = {"curves": {}, "samples": [], "word_maps": {"before": [], "after": []}}
    text = page_of(tmp_path, parts, **empty).text
    for heading in ("Answers to unseen pictures", "Visual words\n", "How it learned"):
        assert heading not in text


def test_word_maps_that_do_not_pair_up_are_an_error(tmp_path, parts):
    parts["word_maps"]["after"] = []
    with pytest.raises(ValueError, match="'before': 1, 'after': 0"):
        page_of(tmp_path, parts)


def test_a_report_needs_the_score_on_real_pictures(tmp_path, parts):
    with pytest.raises(ValueError, match=r"scores\['real'\], got: blind"):
        page_of(tmp_path, parts, scores={"blind": score(1, 2)})


def test_a_missing_picture_is_named(tmp_path, parts):
    parts["samples"][0]["image"] = tmp_path / "gone.png"
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        page_of(tmp_path, parts)


def test_curves_are_the_logged_numbers_with_the_held_out_ones_beside_them():
    loss, lm, vm = curves_of(HISTORY)
    assert loss == Curve("loss", training=[(10, 4.0), (20, 2.0)], held_out=[(20, 2.5)])
    assert lm.training == [(10, 3.0), (20, 1.5)]
    assert (vm.name, vm.held_out) == ("vm_loss", [])


def test_a_line_goes_through_its_points():
    svg = ElementTree.fromstring(line_chart(Curve("loss", [(0, 0.0), (50, 1.0), (100, 2.0)])))
    xs, ys = zip(*re.findall(r"[ML]([\d.]+) ([\d.]+)", svg.find("path").get("d")), strict=True)
    x, y = [float(v) for v in xs], [float(v) for v in ys]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])
    assert y[0] - y[1] == pytest.approx(y[1] - y[2])
    assert y[0] > y[2] == TOP  # up is more
    assert max(y) < HEIGHT


def test_a_value_that_is_not_finite_is_a_gap_and_is_counted(tmp_path, parts):
    history = [{"step": i, "loss": value} for i, value in enumerate([3.0, 2.0, math.nan, 1.0, 0.5])]
    (curve,) = curves_of(history)
    assert curve.num_not_finite == 1
    path = ElementTree.fromstring(line_chart(curve)).find("path").get("d")
    assert (path.count("M"), path.count("L")) == (2, 2)
    assert "1 not finite" in page_of(tmp_path, parts, curves={"stage": history}).text


def test_a_stage_of_nothing_but_nan_says_so():
    assert "No finite value" in line_chart(Curve("loss", [(1, math.nan)]))


@pytest.mark.parametrize("history", [[{"step": 5, "loss": 0.0}], [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}]])
def test_one_point_and_a_constant_are_drawn(history):
    (curve,) = curves_of(history)
    ElementTree.fromstring(line_chart(curve))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.017), (-3, 250), (9.5, 9.6), (0, 3e6), (2, 2), (0, 0)])
def test_ticks_are_round_evenly_spaced_and_cover_the_values(low, high):
    ticks = nice_ticks(low, high, 4)
    steps = [b - a for a, b in pairwise(ticks)]
    rounding = 1e-6 * steps[0]  # ticks are multiples of the step, and 13 × 0.001 is not 0.013 to the last bit
    assert ticks[0] <= low + rounding
    assert ticks[-1] >= high - rounding
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert 2 <= len(ticks) <= 8
    leading = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert any(leading == pytest.approx(nice) for nice in (1, 2, 2.5, 5))


def test_numbers_are_written_for_readers():
    assert [format_number(v) for v in (1500, 0.025, 2.0, 0, 3e-5, 12.345)] == [
        "1,500",
        "0.025",
        "2",
        "0",
        "3e-05",
        "12.3",
    ]
