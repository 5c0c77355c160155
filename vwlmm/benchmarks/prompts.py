"""The words round a question that LLaVA-1.5 and VW-LMM add, byte for byte; a changed blank changes the scores."""

from typing import Any

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
OPTION_LETTER_CN = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def user_turn(*lines: str, image: bool = True) -> list[dict[str, Any]]:
    """One user turn: the picture, a newline, the lines. LLaVA puts the picture first and on a line of its own."""
    text = "\n".join(lines)
    if not image:
        return [{"role": "user", "content": [{"type": "text", "text": text}]}]
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\n" + text}]}]
