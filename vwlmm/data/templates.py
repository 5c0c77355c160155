"""Chat templates, written so that the tokenizer itself says which tokens are the answer.

`{% generation %} … {% endgeneration %}` stands round what the model must learn: the answer and the token that ends it.
Formats: LLaVA's and VW-LMM's conversation.py (byte for byte), LLaVA's stage 1 for `plain`, OpenAI's ChatML.
"""

import re
import warnings
from typing import Any

from vwlmm.data.rows import Message

# Content is a string or a list of text and image parts; an image is the literal <image>, one token, expanded later.
_TEXT = (
    "{% macro text(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)
# The system turn, if there is one, taken off the list; `system` is the format's own sentence otherwise.
_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set system = text(messages[0].content) %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = DEFAULT %}{% set turns = messages %}{% endif %}"
)

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# The system sentence of LLaVA's `llava_llama_2`, with which its LLaMA-2 models were tuned.
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


def _system(default: str) -> str:
    return _SYSTEM.replace("DEFAULT", '"' + default + '"')


# Rows hold no other role; a caller who chats by hand might send one.
_OTHER = "{% else %}{{ raise_exception('expected a user or assistant turn, found role ' ~ turn.role) }}{% endif %}"

# The blank before an answer lies inside the span: a prompt for generation ends in "ASSISTANT:", so the model writes it.
_VICUNA_V1 = (
    _TEXT
    + _system(_VICUNA_SYSTEM)
    + "{{ bos_token }}{{ system }} {% for turn in turns %}"
    + "{% if turn.role == 'user' %}USER: {{ text(turn.content) }} "
    + "{% elif turn.role == 'assistant' %}ASSISTANT:"
    + "{% generation %} {{ text(turn.content) }}{{ eos_token }}{% endgeneration %}"
    + _OTHER
    + "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# VW-LMM's own Mistral format: unlike LLaVA-1.6's there is no blank round the answer, and system text has no place.
_MISTRAL = (
    _TEXT
    + "{{ bos_token }}{% for turn in messages %}"
    + "{% if turn.role == 'user' %}[INST] {{ text(turn.content) }} [/INST]"
    + "{% elif turn.role == 'assistant' %}{% generation %}{{ text(turn.content) }}{{ eos_token }}{% endgeneration %}"
    + _OTHER
    + "{% endfor %}"
)

# LLaVA strips the first begin token of the text and the tokenizer puts its own there; the later ones are text.
_LLAMA_2 = (
    _TEXT
    + _system(_LLAMA_2_SYSTEM)
    + "{% for turn in turns %}{% if turn.role == 'user' %}{{ bos_token }}[INST] "
    + "{% if loop.first and system %}{{ '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' }}{% endif %}"
    + "{{ text(turn.content) }} [/INST]"
    + "{% elif turn.role == 'assistant' %}{% generation %} {{ text(turn.content) }} {{ eos_token }}{% endgeneration %}"
    + _OTHER
    + "{% endfor %}"
)

# Newlines are written as expressions: transformers' Jinja drops a newline that follows a block.
_CHATML = (
    _TEXT
    + "{% for turn in messages %}{{ '<|im_start|>' ~ turn.role ~ '\n' }}"
    + "{% if turn.role == 'assistant' %}{% generation %}{{ text(turn.content) }}<|im_end|>{% endgeneration %}"
    + "{% else %}{{ text(turn.content) }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# LLaVA's stage 1: the question ("Describe the image …") is left out on purpose, the prompt is the picture alone.
_PLAIN = (
    _TEXT
    + "{{ bos_token }}{% for turn in messages %}{% if turn.role == 'user' %}"
    + "{% set images = text(turn.content).count('<image>') %}"
    + "{% if images == 0 %}"
    + "{{ raise_exception('the plain format is for captions: every user turn needs an image') }}{% endif %}"
    + "{{ '<image>' * images }}"
    + "{% elif turn.role == 'assistant' %}{% generation %}{{ text(turn.content) ~ '\n' }}{% endgeneration %}"
    + _OTHER
    + "{% endfor %}"
)

# VLAP and LiMBeR: the picture, "A picture of", and the caption, whose end token is learned with it.
_CAPTION = (
    _TEXT
    + "{{ bos_token }}{% for turn in messages %}{% if turn.role == 'user' %}"
    + "{% set images = text(turn.content).count('<image>') %}"
    + "{% if images != 1 %}{{ raise_exception('the caption format is for one picture and its caption') }}{% endif %}"
    + "<image>A picture of"
    + "{% elif turn.role == 'assistant' %}{% generation %} {{ text(turn.content) ~ eos_token }}{% endgeneration %}"
    + _OTHER
    + "{% endfor %}"
)

CHAT_TEMPLATES: dict[str, str] = {
    "vicuna_v1": _VICUNA_V1,
    "mistral": _MISTRAL,
    "llama_2": _LLAMA_2,
    "chatml": _CHATML,
    "plain": _PLAIN,
    "caption": _CAPTION,
}

SAMPLE: list[Message] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
]


def chat_template_for(name_or_template: str, tokenizer: Any) -> str:
    """The Jinja template of a known format, or the given template itself; checked with this tokenizer.

    Args:
        name_or_template: a key of `CHAT_TEMPLATES`, or Jinja text.
        tokenizer: must know the end token that the format teaches.

    Raises:
        ValueError: an unknown name, a template without spans to learn, or a tokenizer without the end token.
    """
    template = CHAT_TEMPLATES.get(name_or_template, name_or_template)
    if "{" not in template:
        raise ValueError(
            f"Chat template {template!r} is not known: expected {', '.join(CHAT_TEMPLATES)}, or a Jinja template."
        )
    if "eos_token" in template and tokenizer.eos_token is None:
        raise ValueError(
            f"Chat template {name_or_template!r} ends an answer with eos_token, but the tokenizer has none: "
            "set tokenizer.eos_token, or the model never learns to stop."
        )
    if "<|im_end|>" in template and len(tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]) != 1:
        warnings.warn(
            "The chat template ends turns with <|im_end|>, which this tokenizer does not know as one token: "
            "add it as a special token, or choose another template.",
            stacklevel=2,
        )
    validate_template(tokenizer, template)
    return template


def validate_template(tokenizer: Any, template: str) -> None:
    """Checks that a template marks something to learn, on a sample conversation of one question and one answer.

    Raises:
        ValueError: the template has no `{% generation %}` span, or nothing in it is scored.
    """
    from vwlmm.data.encode import tokenize_messages

    if not re.search(r"{%-?\s*generation\s*-?%}", template):
        raise ValueError(
            "The chat template marks nothing to learn: expected `{% generation %}` round the answer, found none. "
            f"Use one of {', '.join(CHAT_TEMPLATES)} (`chat_template:` in the recipe), or add the span to the template."
        )
    _, scored = tokenize_messages(SAMPLE, tokenizer, template)
    if not any(scored):
        raise ValueError(
            "The chat template's `{% generation %}` spans are empty on a sample conversation: nothing would be learned."
        )
