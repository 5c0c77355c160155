"""What `vwlmm data inspect` shows of a row."""

import pytest

from vwlmm.data.dataset import DataConfig, load_datasets
from vwlmm.data.inspect import inspect_rows
from vwlmm.data.templates import CHAT_TEMPLATES


@pytest.fixture
def rows(write, talk):
    return write(
        "rows.json",
        [
            talk("1", "<image>\nWhat is this?", "A cat", "And <image>?", "No.", image=["a.png", "b.png"]),
            {"id": "2"},
            talk("3", "Q", "A"),
        ],
    )


def test_scored_tokens_are_marked_and_images_are_patch_counts(rows, processor):
    train, _ = load_datasets(DataConfig(path=str(rows), chat_template="vicuna_v1"), processor, seed=0)
    shown = inspect_rows(train, processor, num_rows=1, visual_words=True, color=False)
    assert "rows.json row 0 (id 1): " in shown
    assert "USER: [image 1: 4 patches]\nWhat is this? ASSISTANT:⟦ A cat</s>⟧" in shown
    assert "</s>⟧USER: And [image 2: 4 patches]? ASSISTANT:⟦ No.</s>⟧" in shown
    assert "8 of 8 patches carry a visual-word target\n" in shown


def test_an_image_that_opens_the_sequence_loses_its_first_patch(rows, processor):
    template = CHAT_TEMPLATES["plain"].replace("{{ bos_token }}", "")
    train, _ = load_datasets(DataConfig(path=str(rows), chat_template=template), processor, seed=0)
    shown = inspect_rows(train, processor, num_rows=1, visual_words=True, color=False)
    assert "7 of 8 patches carry a visual-word target; the first patch opens the sequence" in shown
    assert "patches carry" not in inspect_rows(train, processor, num_rows=1, color=False)


def test_a_bad_row_is_shown_as_what_it_is_and_the_next_one_follows(rows, processor):
    train, _ = load_datasets(DataConfig(path=str(rows)), processor, seed=0)
    shown = inspect_rows(train, processor, num_rows=3, color=False)
    assert "rows.json row 1 (id 2), field 'row': expected" in shown
    assert "rows.json row 2 (id 3)" in shown


def test_streamed_rows_and_a_terminal_are_served_too(rows, processor):
    stream, _ = load_datasets(DataConfig(path=str(rows), streaming=True), processor, seed=0)
    shown = inspect_rows(stream, processor, num_rows=1, color=True)
    assert "\033[4;32mA cat<|im_end|>\033[0m" in shown
    train, _ = load_datasets(DataConfig(path=str(rows)), processor, seed=0)
    assert shown == inspect_rows([train.encoded(0)], processor, num_rows=1, color=True)
