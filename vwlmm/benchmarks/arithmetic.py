"""Visual semantic arithmetic: pictures added and subtracted, and the word that should come out (ZeroCap, VLAP).

`vwlmm score arithmetic --annotations triples.jsonl --answers answers.jsonl`
A line of `triples.jsonl`: `{"plus": ["a.png", "b.png"], "minus": ["c.png"], "target": "king"}`; `target` may be a list of
words of which any is right. ZeroCap's Visual Relations (arXiv 2111.14447) are written so with one word each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmark import Answer, Files, Question, Score
from .caption_metrics import bleu
from .captioning import only_file
from .engines import Arithmetician, EmbedBenchmark
from .official_files import Record, find_files, mean, read_json_lines
from .ptb_tokenizer import ptb_tokens

KS = (1, 5, 10)


class Arithmetic(EmbedBenchmark):
    """One question a line of the triples; its id is `id` where the line has one, else the line's number from 1.

    A line of the answers file has `words`, the nearest words with the nearest first, and `text`, what the language model
    wrote; one of the two is enough.
    """

    name = "arithmetic"
    title = "Visual semantic arithmetic"
    needs = Arithmetician
    answer_fields = ("words", "text")
    answer_kind = list
    options = {"num_words": 10}

    def files(self, data: Path) -> Files:
        """`triples.jsonl` and the pictures beside it."""
        (triples,) = find_files(data, self.name, "triples.jsonl")
        return Files((triples,), (), triples.parent)

    def read(self, files: Files) -> list[Question]:
        """One question a line."""
        path = only_file(files, self.name, "a JSONL file of plus, minus and target")
        questions: dict[str, Question] = {}
        for number, record in enumerate(read_json_lines(path), start=1):
            name = str(record.get("id", str, int)) if "id" in record.value else str(number)
            if name in questions:
                raise record.error("id", f"expected each id once, found {name} again")
            plus, minus = _names(record, "plus"), _names(record, "minus")
            if not plus:
                raise record.error("plus", "expected at least one picture, found none")
            questions[name] = Question(
                id=name,
                messages=(),
                images=(*plus, *minus),
                record={"plus": plus, "minus": minus, "targets": _targets(record)},
                where=record.where,
            )
        return list(questions.values())

    def matcher(self, questions: Sequence[Question]) -> Callable[[Answer], str | None]:
        """By id; the words are checked here, where their place is known."""
        ids = {question.id for question in questions}

        def match(answer: Answer) -> str | None:
            words = answer.get("words", [])
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError(f"field words: expected a list of words, found {words!r}")
            if not isinstance(answer.get("text", ""), str):
                raise ValueError(f"field text: expected text, found {answer['text']!r}")
            return answer["question_id"] if answer.get("question_id") in ids else None

        return match

    def answer_all(self, questions: Sequence[Question], embedder: object, batch_size: int) -> Iterator[dict[str, Any]]:
        """Nearest words and what the language model writes."""
        assert isinstance(embedder, Arithmetician)
        for question in questions:
            plus, minus = question.record["plus"], question.record["minus"]
            words = embedder.nearest_words(plus, minus, self.settings["num_words"])
            yield {"question_id": question.id, "words": words, "text": embedder.describe(plus, minus)}

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """R@K: the target among the first K words. BLEU-1: of the written text against the targets."""
        details = [_detail(question, answers[question.id]) for question in questions]
        metrics: dict[str, float] = {}
        notes = []
        if all("words" in answers[question.id] for question in questions):
            fewest = min(len(detail["words"]) for detail in details)
            metrics |= {f"R@{k}": mean(0 < detail["rank"] <= k for detail in details) for k in KS if k <= fewest}
            notes.append(f"{len(details)} questions, {fewest} words or more each")
        if all("text" in answers[question.id] for question in questions):
            texts = [ptb_tokens(answers[question.id]["text"]) for question in questions]
            targets = [[ptb_tokens(word) for word in question.record["targets"]] for question in questions]
            metrics["BLEU-1"] = bleu(texts, targets)[0]
            metrics["text_has_target"] = mean(detail["text_has_target"] for detail in details)
        if not metrics:
            raise ValueError(f"{self.name}: expected words in every line or text in every line; found neither.")
        return Score(metrics, details, notes)


def _names(record: Record, field: str) -> tuple[str, ...]:
    names = record.get(field, list)
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise record.error(f"{field}[{index}]", f"expected the name of a picture, found {name!r}")
    return tuple(names)


def _targets(record: Record) -> list[str]:
    # `expected`, as `vwlmm arithmetic` reads it, is the same list.
    field = "target" if "target" in record.value else "expected"
    if field not in record.value:
        raise record.error("target", "expected the word that should come out, found no such field")
    found = record.get(field, str, list)
    targets = [found] if isinstance(found, str) else found
    if not targets or not all(isinstance(word, str) and word.strip() for word in targets):
        raise record.error(field, f"expected a word or a list of words, found {found!r}")
    return targets


def _detail(question: Question, answer: Answer) -> dict[str, Any]:
    targets = {word.strip().lower() for word in question.record["targets"]}
    words = [word.strip().lower() for word in answer.get("words", [])]
    # 0: not among the words that were given.
    rank = next((place for place, word in enumerate(words, start=1) if word in targets), 0)
    written = f" {ptb_tokens(answer.get('text', ''))} "
    return {
        "question_id": question.id,
        "targets": sorted(targets),
        "words": words,
        "rank": rank,
        "text": answer.get("text", ""),
        "text_has_target": any(f" {ptb_tokens(word)} " in written for word in targets),
    }
