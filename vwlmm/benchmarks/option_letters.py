"""Which option did a free answer choose? VLMEvalKit's rules (commit e8e78f05) before it asks a judge model."""

from collections.abc import Mapping

# An answer that refuses, or chooses Z, is decided and wrong.
REFUSED = "Z"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NO_ANSWER = "Failed to obtain answer via API"
_MARKS = ".()[],:;!*#{}"
_LAST_WORDS = 4


def infer_option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the chosen option, `REFUSED`, or None where rules cannot tell and a judge model would be asked."""
    return _by_letter(text, options) or _by_content(text, options)


def _by_letter(text: str, options: Mapping[str, str]) -> str | None:
    """One letter that stands alone, among the last words: earlier an A may be an article."""
    if _NO_ANSWER in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return REFUSED
    words = text.translate(str.maketrans(_MARKS, " " * len(_MARKS))).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
        return named[0]
    return REFUSED if not named and REFUSED in words else None


def _by_content(text: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text occurs in the answer, unless the answer is far longer than all options together."""
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return named[0] if len(named) == 1 else None
