"""The five chat templates: the text they write, and the part of it that is learned."""

import re

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

from vwlmm.data.encode import tokenize_messages
from vwlmm.data.templates import CHAT_TEMPLATES, chat_template_for, validate_template

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


def say(*turns: str, system: str | None = None, parts: bool = True) -> list[dict]:
    """Turns of user, assistant, user …, as lists of parts or as plain strings."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]
    if parts:
        for message in messages:
            pieces = re.split("(<image>)", message["content"])
            message["content"] = [
                {"type": "image"} if piece == "<image>" else {"type": "text", "text": piece}
                for piece in pieces
                if piece
            ]
    return messages


# What LLaVA's conversation.py (vicuna_v1, llava_llama_2), its preprocess_plain and VW-LMM's (mistral) write for two
# turns; "<s>" at the start is the one their tokenizer adds.
TWO_TURNS = {
    "vicuna_v1": f"<s>{VICUNA} USER: <image>\nWhat is this? ASSISTANT: A cat</s>USER: <image> And? ASSISTANT: No.</s>",
    "mistral": "<s>[INST] <image>\nWhat is this? [/INST]A cat</s>[INST] <image> And? [/INST]No.</s>",
    "llama_2": (
        f"<s>[INST] <<SYS>>\n{LLAMA_2}\n<</SYS>>\n\n<image>\nWhat is this? [/INST] A cat </s>"
        "<s>[INST] <image> And? [/INST] No. </s>"
    ),
    "chatml": (
        "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA cat<|im_end|>\n"
        "<|im_start|>user\n<image> And?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
    ),
    "plain": "<s><image>A cat\n<image>No.\n",
}
# The answers as they are learned: with the blanks round them that the model writes itself, and the end token.
LEARNED = {
    "vicuna_v1": [" A cat</s>", " No.</s>"],
    "mistral": ["A cat</s>", "No.</s>"],
    "llama_2": [" A cat </s>", " No. </s>"],
    "chatml": ["A cat<|im_end|>", "No.<|im_end|>"],
    "plain": ["A cat\n", "No.\n"],
}
TURNS = ("<image>\nWhat is this?", "A cat", "<image> And?", "No.")
CONVERSATIONS = [name for name in CHAT_TEMPLATES if name != "caption"]  # that one is for one picture and its caption


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_each_template_writes_its_format_byte_for_byte(byte_tokenizer, name, parts):
    text = byte_tokenizer.apply_chat_template(
        say(*TURNS, parts=parts), chat_template=CHAT_TEMPLATES[name], tokenize=False
    )
    assert text == TWO_TURNS[name]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_prompt_for_generation_is_the_conversation_up_to_the_learned_answer(byte_tokenizer, name):
    prompt = byte_tokenizer.apply_chat_template(
        say(*TURNS[:3]), chat_template=CHAT_TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )
    assert TWO_TURNS[name].removesuffix("\n" if name == "chatml" else "") == prompt + LEARNED[name][1]


@pytest.mark.parametrize("tokenizer_name", ["byte_tokenizer", "llama_tokenizer"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_answers_and_their_end_tokens_are_scored_and_nothing_else(request, tokenizer_name, name):
    tokenizer = request.getfixturevalue(tokenizer_name)
    ids, scored = tokenize_messages(say(*TURNS), tokenizer, CHAT_TEMPLATES[name])
    learned, run = [], []
    for token, mark in zip([*ids, None], [*scored, False], strict=True):
        if mark:
            run.append(token)
        elif run:
            learned.append(tokenizer.decode(run, clean_up_tokenization_spaces=False))
            run = []
    assert learned == LEARNED[name]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_where_transformers_own_mask_is_right_ours_is_the_same(byte_tokenizer, name):
    messages = say(*TURNS)
    ids, scored = tokenize_messages(messages, byte_tokenizer, CHAT_TEMPLATES[name])
    theirs = byte_tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATES[name], return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == theirs["input_ids"]
    assert scored == [bool(mark) for mark in theirs["assistant_masks"]]


@pytest.mark.parametrize("name", ["vicuna_v1", "llama_2", "chatml", "mistral"])
def test_a_span_that_begins_with_a_blank_without_a_token_is_still_scored(word_tokenizer, name):
    ids, scored = tokenize_messages(say("What", "cat", "this", "a dog"), word_tokenizer, CHAT_TEMPLATES[name])
    learned = [token for token, mark in zip(ids, scored, strict=True) if mark]
    end = "<|im_end|>" if name == "chatml" else "</s>"
    assert word_tokenizer.convert_ids_to_tokens(learned) == ["cat", end, "a", "<unk>", end]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vicuna_v1", "<s>Be brief. USER: Q ASSISTANT: A</s>"),
        ("llama_2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQ [/INST] A </s>"),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
        ),
    ],
)
@pytest.mark.parametrize("parts", [True, False])
def test_a_system_turn_replaces_the_formats_own(byte_tokenizer, name, text, parts):
    messages = say("Q", "A", system="Be brief.", parts=parts)
    assert byte_tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATES[name], tokenize=False) == text


def test_plain_leaves_the_question_out_as_llavas_first_stage_does(byte_tokenizer):
    messages = say("Describe the image concisely.\n<image>", "a cat")
    text = byte_tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATES["plain"], tokenize=False)
    assert text == "<s><image>a cat\n"


def test_an_unknown_name_lists_the_known_ones(byte_tokenizer):
    with pytest.raises(
        ValueError, match="'vicuna_v2' is not known: expected vicuna_v1, mistral, llama_2, chatml, plain"
    ):
        chat_template_for("vicuna_v2", byte_tokenizer)


def test_a_template_of_ones_own_is_taken_as_it_is(byte_tokenizer):
    template = "{% for m in messages %}{% generation %}{{ m.content[0].type }}{% endgeneration %}{% endfor %}"
    assert chat_template_for(template, byte_tokenizer) == template


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "marks nothing to learn"),
        ("{{ messages[0].role }}{% generation %}{% endgeneration %}", "spans are empty"),
    ],
)
def test_a_template_that_teaches_nothing_is_refused(byte_tokenizer, template, message):
    with pytest.raises(ValueError, match=message):
        validate_template(byte_tokenizer, template)


def test_a_tokenizer_without_the_end_token_is_refused_or_warned_about(byte_tokenizer):
    backend = byte_tokenizer.backend_tokenizer.to_str().replace("<|im_end|>", "<|other|>")
    no_end = type(byte_tokenizer)(tokenizer_object=Tokenizer.from_str(backend))
    with pytest.raises(ValueError, match="never learns to stop"):
        chat_template_for("vicuna_v1", no_end)
    with pytest.warns(UserWarning, match="does not know as one token"):
        chat_template_for("chatml", no_end)


def test_the_caption_format_is_one_picture_its_prompt_and_a_caption_that_ends(byte_tokenizer):
    template = CHAT_TEMPLATES["caption"]
    messages = say("<image>\nDescribe it.", "A cat")
    assert byte_tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False) == (
        "<s><image>A picture of A cat</s>"
    )
    prompt = byte_tokenizer.apply_chat_template(
        messages[:1], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<s><image>A picture of"
    ids, scored = tokenize_messages(messages, byte_tokenizer, template)
    learned = [token for token, mark in zip(ids, scored, strict=True) if mark]
    assert byte_tokenizer.decode(learned, clean_up_tokenization_spaces=False) == " A cat</s>"


def test_the_caption_format_refuses_a_second_picture(byte_tokenizer):
    with pytest.raises(TemplateError, match="one picture and its caption"):
        byte_tokenizer.apply_chat_template(
            say("<image><image>Which?", "A cat"), chat_template=CHAT_TEMPLATES["caption"], tokenize=False
        )
