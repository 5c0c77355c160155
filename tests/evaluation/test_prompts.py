"""Prompts byte for byte, in the chat formats of the published models."""

import pytest

from vwlmm.benchmarks import Question
from vwlmm.benchmarks.prompts import SHORT_ANSWER, user_turn
from vwlmm.data.templates import CHAT_TEMPLATES
from vwlmm.evaluation.prompts import prompt_hash, render, render_answered, template_of

ASKED = Question("1", user_turn("What is this?", SHORT_ANSWER), ("cat.jpg",))
WRITTEN = {
    "vicuna_v1": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: <image>\nWhat is this?\n"
    + SHORT_ANSWER
    + " ASSISTANT:",
    "mistral": "<s>[INST] <image>\nWhat is this?\n" + SHORT_ANSWER + " [/INST]",
    "chatml": "<|im_start|>user\n<image>\nWhat is this?\n" + SHORT_ANSWER + "<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_question_is_written_as_the_models_format_has_it(processor, name):
    assert render(ASKED, processor, CHAT_TEMPLATES[name]) == WRITTEN[name]


def test_a_text_to_go_on_with_stands_behind_the_begin_token_alone(processor):
    content = [{"type": "image"}, {"type": "text", "text": "A picture of "}]
    asked = Question("1", [{"role": "user", "content": content}], ("cat.jpg",))
    assert render(asked, processor, template_of(processor, completion=True)) == "<s><image>A picture of "


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("answer", ["a cat", "end", "s", "e"])
def test_an_answer_ends_with_its_last_letter_even_if_the_end_token_has_it_too(processor, name, answer):
    text = render_answered(ASKED, answer, processor, CHAT_TEMPLATES[name])
    assert text.removeprefix(WRITTEN[name]).strip() == answer


def test_a_template_that_writes_the_line_break_itself_does_not_write_it_twice(processor):
    template = CHAT_TEMPLATES["mistral"].replace("<image>", "<image>\n")
    assert render(ASKED, processor, template) == WRITTEN["mistral"]


def test_a_template_that_forgets_the_picture_is_refused(processor):
    template = CHAT_TEMPLATES["mistral"].replace("<image>", "")
    with pytest.raises(ValueError, match="Question '1' shows 1 pictures, and the chat template wrote <image> 0 times"):
        render(ASKED, processor, template)


def test_the_hash_knows_order_words_and_pictures():
    def hashed(*questions):
        return prompt_hash(questions, [question.prompt for question in questions])

    other = Question("2", user_turn("What is this?", SHORT_ANSWER), ("cat.jpg",))
    assert hashed(ASKED, other) == hashed(ASKED, other)
    assert hashed(ASKED, other) != hashed(other, ASKED)
    assert hashed(ASKED) != hashed(Question("1", ASKED.messages, ("dog.jpg",)))
    assert hashed(ASKED) != hashed(Question("1", user_turn("What is that?"), ("cat.jpg",)))
    assert hashed(ASKED) != hashed(Question("1", ASKED.messages, (b"a cat",)))
