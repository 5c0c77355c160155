"""Questions as the model reads them: the chat template's text, one image token a picture, and a hash of all of them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError

from vwlmm.benchmarks import Question


def template_of(processor: Any, completion: bool) -> str:
    """The chat template, or for a benchmark whose prompt is text to go on with the one that only joins the parts.

    Raises:
        ValueError: the processor has no chat template, and the benchmark asks in turns.
    """
    from vwlmm.benchmarks.engines import COMPLETION_TEMPLATE
    from vwlmm.data.encode import own_template

    if not completion:
        return str(own_template(processor))
    return COMPLETION_TEMPLATE.replace("<image>", processor.image_token)


def render(question: Question, processor: Any, template: str) -> str:
    """The text behind which the model writes its answer.

    Raises:
        ValueError: the template refuses the messages, or does not write one image token a picture.
    """
    text = _apply(question.messages, question, processor, template, add_generation_prompt=True)
    image = processor.image_token
    if text.count(image) != len(question.images):
        raise ValueError(
            f"Question {question.id!r} shows {len(question.images)} pictures, and the chat template wrote {image} "
            f"{text.count(image)} times: it must write it once for each."
        )
    return text


def render_answered(question: Question, answer: str, processor: Any, template: str) -> str:
    """The prompt and the answer as the template writes it, up to the answer's last letter.

    Raises:
        ValueError: the template changes the prompt or the answer.
    """
    prompt = render(question, processor, template)
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    text = _apply([*question.messages, turn], question, processor, template, add_generation_prompt=False)
    begin = text.find(answer.strip(), len(prompt)) if text.startswith(prompt) else -1
    if begin < 0:
        raise ValueError(
            f"Question {question.id!r}: with an answer behind it the chat template writes another prompt, or not the answer."
        )
    return text[: begin + len(answer.strip())]


def _apply(
    messages: Sequence[Any], question: Question, processor: Any, template: str, *, add_generation_prompt: bool
) -> str:
    try:
        text = processor.apply_chat_template(
            list(messages), chat_template=template, add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except TemplateError as problem:
        raise ValueError(f"The model's chat template refuses question {question.id!r}: {problem}") from problem
    image = processor.image_token
    # Templates of other LLaVAs write the line break after a picture themselves.
    return str(text).replace(f"{image}\n\n", f"{image}\n")


def writes_begin_token(processor: Any, text: str) -> bool:
    """True when the template has written the first token itself; the model was not trained to see it twice."""
    bos = processor.tokenizer.bos_token
    return bool(bos) and text.startswith(bos)


def prompt_hash(questions: Iterable[Question], texts: Sequence[str]) -> str:
    """Two runs with the same hash asked the same questions, in the same order, in the same words, about the same pictures."""
    digest = hashlib.sha256()
    for question, text in zip(questions, texts, strict=True):
        pictures = [hashlib.sha256(p).hexdigest() if isinstance(p, bytes) else p for p in question.images]
        digest.update(json.dumps([question.id, text, pictures], ensure_ascii=False).encode())
    return digest.hexdigest()
