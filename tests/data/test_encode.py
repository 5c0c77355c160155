"""Rows as ids and labels: images expanded, cut and counted, answers scored."""

import dataclasses

import pytest

from vwlmm.data.bad_row import BadRow
from vwlmm.data.encode import IGNORE, encode_row, num_image_tokens
from vwlmm.data.rows import Row
from vwlmm.data.templates import CHAT_TEMPLATES

PATCHES = 4  # tokens of an image in these tests


def row(*turns: str, images: int = 0) -> Row:
    from vwlmm.data.rows import _split

    messages = [
        {"role": ("user", "assistant")[number % 2], "content": _split(turn)} for number, turn in enumerate(turns)
    ]
    return Row("7", "rows.json row 3", messages, [f"{number}.png" for number in range(images)])


TALK = row("<image>\nWhat is this?", "A cat on a mat.", "And <image><image> this?", "No, a big dog!", images=3)


def test_an_image_takes_as_many_tokens_as_the_processor_gives_it(processor, make_processor, byte_tokenizer):
    from PIL import Image

    assert num_image_tokens(processor) == PATCHES
    text = processor(images=[Image.new("RGB", (50, 20))], text="<image>")["input_ids"][0]
    assert text.count(processor.image_token_id) == PATCHES
    wide = make_processor(byte_tokenizer, crop_size={"height": 28, "width": 56}, size={"height": 28, "width": 56})
    assert num_image_tokens(wide) == 8


def test_a_processor_whose_pictures_differ_in_size_is_refused(make_processor, byte_tokenizer):
    with pytest.raises(ValueError, match="depending on its shape: expected one number"):
        num_image_tokens(make_processor(byte_tokenizer, do_center_crop=False))


def test_encoding_gives_the_ids_that_the_processor_itself_gives(processor):
    from PIL import Image

    encoded = encode_row(TALK, processor, max_length=10_000)
    text = processor.apply_chat_template(TALK.messages, tokenize=False)
    pictures = [Image.new("RGB", (30, 30))] * 3
    assert encoded.input_ids == processor(images=pictures, text=text, add_special_tokens=False)["input_ids"][0]
    assert encoded.images == TALK.images
    assert not encoded.truncated


@pytest.mark.parametrize("name", [name for name in CHAT_TEMPLATES if name != "caption"])  # TALK has two pictures
def test_labels_are_the_answers_and_no_image_is_scored(processor, name):
    encoded = encode_row(TALK, processor, max_length=10_000, chat_template=CHAT_TEMPLATES[name])
    scored = [label for label in encoded.labels if label != IGNORE]
    end = {"chatml": "<|im_end|>", "plain": "\n"}.get(name, "</s>")
    answers = "".join(
        {"vicuna_v1": f" {text}{end}", "llama_2": f" {text} {end}"}.get(name, text + end)
        for text in ("A cat on a mat.", "No, a big dog!")
    )
    assert processor.tokenizer.decode(scored, clean_up_tokenization_spaces=False) == answers
    assert encoded.input_ids.count(processor.image_token_id) == 3 * PATCHES
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (IGNORE, token)


def test_an_image_inside_an_answer_is_read_but_not_scored(processor):
    encoded = encode_row(row("Q", "Here: <image> a cat", images=1), processor, max_length=100)
    assert processor.image_token_id in encoded.input_ids
    assert processor.image_token_id not in encoded.labels


def test_truncation_never_cuts_an_image_whatever_the_maximum_length(processor):
    whole = encode_row(TALK, processor, max_length=10_000)
    image_id = processor.image_token_id
    first_scored = next(at for at, label in enumerate(whole.labels) if label != IGNORE)
    begins = [at for at, token in enumerate(whole.input_ids) if token == image_id][::PATCHES]
    inside = 0
    for max_length in range(1, len(whole.input_ids) + 2):
        if max_length <= first_scored:
            with pytest.raises(BadRow, match="field 'length'"):
                encode_row(TALK, processor, max_length=max_length)
            continue
        cut = encode_row(TALK, processor, max_length=max_length)
        length = len(cut.input_ids)
        assert cut.input_ids == whole.input_ids[:length]
        assert cut.labels == whole.labels[:length]
        assert cut.input_ids.count(image_id) == PATCHES * len(cut.images)
        assert cut.images == TALK.images[: len(cut.images)]
        assert cut.truncated == (max_length < len(whole.input_ids))
        if any(begin < max_length < begin + PATCHES for begin in begins):
            assert length in begins  # cut before the image
            inside += 1
        else:
            assert length == min(max_length, len(whole.input_ids))
    assert inside == 2 * (PATCHES - 1)  # both images after the first answer were tried at each of their places


def test_a_row_too_long_to_teach_anything_says_where_its_answer_begins(processor):
    with pytest.raises(BadRow, match="too long, nothing left to learn: ") as raised:
        encode_row(TALK, processor, max_length=10)
    assert raised.value.expected == "an answer that begins within 10 tokens (`max_length`)"


def test_a_row_that_the_template_scores_nothing_of_is_bad(processor):
    template = (
        "{% for m in messages %}{{ m.role }}{% if false %}{% generation %}x{% endgeneration %}{% endif %}{% endfor %}"
    )
    with pytest.raises(BadRow, match="nothing to learn"):
        encode_row(row("Q", "A"), processor, max_length=10, chat_template=template)


def test_a_template_that_loses_images_is_found_out(processor):
    template = "{% for m in messages %}{% generation %}{{ m.content[0].text }}{% endgeneration %}{% endfor %}"
    with pytest.raises(BadRow, match="found 0 for 1 images"):
        encode_row(row("Q <image>", "A", images=1), processor, max_length=10, chat_template=template)


def test_what_a_template_refuses_is_a_bad_row(processor):
    with pytest.raises(BadRow, match="every user turn needs an image"):
        encode_row(row("Q", "A"), processor, max_length=10, chat_template=CHAT_TEMPLATES["plain"])
    odd = dataclasses.replace(
        TALK, messages=[{"role": "system", "content": [{"type": "text", "text": "S"}]}, *TALK.messages]
    )
    with pytest.raises(BadRow, match="found role system"):
        encode_row(odd, processor, max_length=10, chat_template=CHAT_TEMPLATES["mistral"])


def test_a_processor_without_a_template_names_the_known_ones(make_processor, byte_tokenizer):
    with pytest.raises(ValueError, match="vicuna_v1, mistral, llama_2, chatml or plain"):
        encode_row(TALK, make_processor(byte_tokenizer, template=None), max_length=100)
