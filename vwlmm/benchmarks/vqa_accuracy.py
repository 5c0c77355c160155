"""VQA accuracy as VQAv2, VizWiz and TextVQA compute it: three rules over the same string steps, not to be merged.

(a) `official_accuracy`: GT-Vision-Lab/VQA, commit a013f00.  (b) `vizwiz_accuracy`: the VizWiz API.
(c) `evalai_accuracy`: EvalAI / M4C, which LLaVA uses for TextVQA and to prepare VQAv2 and VizWiz submissions.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .benchmark import Score
from .official_files import mean

NUM_ANNOTATORS = 10

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The official code gives re.UNICODE (32) where `sub` takes the count, so only the first 32 full stops go.
_MAX_FULL_STOPS = 32
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"} | {
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset({"a", "an", "the"})
# What the official table makes of a word; its keys with capitals (Im, Ive, Id've, I'dve) never meet a lower-case word.
_CONTRACTION_PAIRS = """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
    didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't
    havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's isnt:isn't
    itd:it'd itd've:it'd've it'dve:it'd've itll:it'll let's:let's maam:ma'am mightnt:mightn't mightnt've:mightn't've
    mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
    oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've she'dve:she'd've
    she's:she's shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've
    somebody'd:somebodyd somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll
    somebodys:somebody's someoned:someone'd someoned've:someone'd've someone'dve:someone'd've someonell:someone'll
    someones:someone's somethingd:something'd somethingd've:something'd've something'dve:something'd've
    somethingll:something'll thats:that's thered:there'd thered've:there'd've there'dve:there'd've therere:there're
    theres:there's theyd:they'd theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've
    twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're
    whats:what's whatve:what've whens:when's whered:where'd wheres:where's whereve:where've whod:who'd
    whod've:who'd've who'dve:who'd've wholl:who'll whos:who's whove:who've whyll:why'll whyre:why're whys:why's
    wont:won't wouldve:would've wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all
    yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd
    youd've:you'd've you'dve:you'd've youll:you'll youre:you're youve:you've
"""
_CONTRACTIONS = dict(pair.split(":") for pair in _CONTRACTION_PAIRS.split())


def on_one_line(text: str) -> str:
    """Newlines and tabs become blanks, blanks at both ends go: the step before all others."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str) -> str:
    """The punctuation step. A mark goes where it stands beside a blank or any number has a comma, else becomes a blank."""
    joined = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _MARKS:
        beside_blank = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if beside_blank or joined else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)


def with_plain_words(text: str) -> str:
    """The word step: lower case, numbers as digits, no articles, contractions with their apostrophes."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """All string steps of the official VQA code. Apply it once: a second time changes some texts again."""
    return with_plain_words(without_punctuation(on_one_line(text)))


@lru_cache(maxsize=1 << 16)
def evalai_normalise(text: str) -> str:
    """The same steps after EvalAI's own: lower case, no commas and question marks, a blank before 's."""
    return normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def normalisation_applies(annotators: Sequence[Mapping[str, Any]]) -> bool:
    """Rule (a): False when all ten stripped answers are the same text; then only that very text is right."""
    return len({on_one_line(annotator["answer"]) for annotator in annotators}) > 1


def official_accuracy(prediction: str, annotators: Sequence[Mapping[str, Any]]) -> float:
    """Rule (a), VQAv2.

    Args:
        annotators: the annotation's `answers`. The official code leaves one out by comparing whole records, so they
            need their `answer_id`: without it equal answers drop out together.
    """
    others = [{**annotator, "answer": on_one_line(annotator["answer"])} for annotator in annotators]
    prediction = on_one_line(prediction)
    if normalisation_applies(annotators):
        others = [{**other, "answer": normalise(other["answer"])} for other in others]
        prediction = normalise(prediction)
    matching = [other for other in others if other["answer"] == prediction]
    scores = [min(1.0, (len(matching) - matching.count(left_out)) / 3) for left_out in others]
    return sum(scores) / len(scores)


def vizwiz_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Rule (b), VizWiz: the prediction is always normalised, the annotators' answers never."""
    return _leave_one_out(normalise(prediction), answers)


def evalai_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Rule (c), TextVQA: both sides are normalised as EvalAI does."""
    return _leave_one_out(evalai_normalise(prediction), [evalai_normalise(answer) for answer in answers])


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(matches among the others / 3, 1)."""
    matches = [answer == prediction for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def score_by_answer_type(details: Sequence[Mapping[str, Any]], rule: str) -> Score:
    """Both accuracies over all questions, and the first for every answer type.

    Args:
        details: rows with `accuracy`, `submission_accuracy` and `answer_type`.
        rule: what the first accuracy is called in the note.
    """
    metrics = {name: mean(row[name] for row in details) for name in ("accuracy", "submission_accuracy")}
    for kind in sorted({row["answer_type"] for row in details}):
        metrics[f"accuracy/{kind}"] = mean(row["accuracy"] for row in details if row["answer_type"] == kind)
    note = (
        f"accuracy: {rule} on the answers as they are; submission_accuracy: on the answers normalised as EvalAI does, "
        "which LLaVA and VW-LMM submit"
    )
    return Score(metrics, details, [note])
