"""`vwlmm chat`: answers are those of `generate`, a conversation is remembered, and mistakes are told and survived."""

import argparse
import io
import sys

import pytest
import torch
from PIL import Image
from test_visualize import WORDS, tiny_model

from vwlmm.chat import Answer, ChatConfig, ChatSession, add_arguments, chat, main

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    for part in tiny:
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a cat.png"
    Image.effect_noise((40, 30), 60).convert("RGB").save(path)
    return path


@pytest.fixture
def session(tiny):
    return ChatSession(*tiny, ChatConfig(max_new_tokens=12))


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args([str(word) for word in words]))


def generated(tiny, picture, num_tokens: int) -> str:
    """The answer to QUESTION without any of our code."""
    model, processor = tiny
    inputs = processor(text=f"user: <image>\n{QUESTION}\nassistant:", images=Image.open(picture), return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_one_shot_prints_what_generate_says_and_nothing_else(tiny, folder, picture, capsys):
    expected = generated(tiny, picture, 20)
    assert len(expected) > 5
    assert run(folder, "--image", picture, "--prompt", QUESTION, "--max-new-tokens", 20) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_the_answer_depends_on_the_picture(session, picture, tmp_path):
    Image.new("RGB", (40, 30), (250, 10, 10)).save(tmp_path / "red.png")
    answers = []
    for path in (picture, tmp_path / "red.png"):
        session.clear()
        session.add_image(path)
        answers.append(session.ask(QUESTION))
    assert answers[0] != answers[1]


def test_text_is_written_token_by_token_and_never_half_a_letter(tiny):
    tokenizer = tiny[1].tokenizer
    ids = tokenizer.encode("ça\n\n  roof 中!", add_special_tokens=False)
    pieces: list[str] = []

    class Pieces(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    answer = Answer(tokenizer, Pieces())
    answer.put(torch.tensor([[5, 6, 7]]))  # the prompt
    for token in ids:
        answer.put(torch.tensor([token]))
    answer.put(torch.tensor([tokenizer.eos_token_id]))
    answer.end()
    assert "".join(pieces) == answer.text == "ça\n\n  roof 中!"
    assert len([piece for piece in pieces if piece]) > 6
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_conversation_is_remembered_with_its_pictures(session, picture, monkeypatch):
    seen = []
    generate = session.model.generate
    monkeypatch.setattr(session.model, "generate", lambda **inputs: seen.append(inputs) or generate(**inputs))
    session.add_image(picture)
    first = session.ask(QUESTION)
    session.ask("And now?")
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2
    prompt = session.processor.tokenizer.decode(seen[1]["input_ids"][0])
    assert prompt == f"<s>user: {'<image>' * 4}\n{QUESTION}\nassistant: {first.strip()}\nuser: And now?\nassistant:"
    assert seen[1]["pixel_values"].shape == (1, 3, 28, 28)
    session.add_image(picture)
    session.ask("And this one?")
    assert seen[2]["pixel_values"].shape == (2, 3, 28, 28)
    session.clear()
    session.ask("Without a picture?")
    assert "pixel_values" not in seen[3]
    assert len(session.messages) == 2


@pytest.mark.parametrize("start", ["", "<s>"])
def test_a_prompt_starts_once_whether_or_not_its_template_writes_the_first_token(tiny, monkeypatch, start):
    model, processor = tiny
    monkeypatch.setattr(processor, "chat_template", start + processor.chat_template)
    inputs = ChatSession(model, processor)._inputs([{"role": "user", "content": [{"type": "text", "text": "a"}]}], [])
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == "<s>user: a\nassistant:"


def test_the_system_text_comes_first(tiny):
    session = ChatSession(*tiny, ChatConfig(max_new_tokens=2, system="Be brief."))
    session.ask("a")
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant"]
    session.clear()
    assert [message["role"] for message in session.messages] == ["system"]


def test_draws_repeat_with_their_seed(tiny, picture):
    def draw(seed: int) -> str:
        session = ChatSession(*tiny, ChatConfig(max_new_tokens=20, temperature=5.0, seed=seed))
        session.add_image(picture)
        return session.ask(QUESTION)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


class Interrupted(io.StringIO):
    """Presses Ctrl-C when the third piece of text is written."""

    left = 3

    def write(self, text: str) -> int:
        self.left -= bool(text)
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(session, picture):
    session.add_image(picture)
    whole = session.ask(QUESTION)
    session.clear()
    session.add_image(picture)
    begun = session.ask(QUESTION, Interrupted())
    assert session.stopped
    assert 0 < len(begun) < len(whole)
    assert whole.startswith(begun)
    assert session.messages[-1]["content"][0]["text"] == begun.strip()
    session.ask("Go on")
    assert not session.stopped
    assert len(session.messages) == 4


def test_a_question_stopped_before_its_answer_is_forgotten_and_its_picture_waits(session, picture, monkeypatch):
    def stopped(**inputs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(session.model, "generate", stopped)
        session.add_image(picture)
        assert session.ask(QUESTION) == ""
    assert session.messages == []
    session.ask(QUESTION)
    assert session.messages[0]["content"][0] == {"type": "image"}


def test_ctrl_c_in_a_one_shot_answer_gives_the_shell_its_exit_code(folder, picture, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Interrupted())
    assert run(folder, "--image", picture, "--prompt", QUESTION) == 130


def test_piped_lines_are_answered_until_quit(tiny, folder, picture, monkeypatch, capsys):
    lines = ["/words", "/image no.png", f"/image '{picture}'", "/dance", "/image", "", QUESTION, "/words"]
    lines += ["/clear", "/words", "/help", "/quit", "never read"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert run(folder, "--max-new-tokens", 12) == 0
    out = capsys.readouterr().out
    told = [
        "/words shows the last picture, and there is none yet: add one with /image FILE.\n",
        "Expected a picture file, found none at no.png: check the path.\n",
        f"{picture} goes with the next message.\n",
        "Expected /image, /words, /clear, /help or /quit, got /dance.\n",
        "/image needs a file: /image cat.jpg\n",
        generated(tiny, picture, 12) + "\n",
        "a cat.png: 2 × 2 patches, mean entropy",
        "The conversation and its pictures are forgotten.\n",
        "/words shows the last picture, and there is none yet",
        "/image FILE  add a picture to the next message",
    ]
    places = []
    for text in told:
        places.append(out.index(text, places[-1] if places else 0))
    assert places[0] == 0
    assert out.endswith("Ctrl-C stops an answer\n")


def test_lines_end_at_the_end_of_input(session):
    out = io.StringIO()
    chat(session, ["hello\n"], out)
    assert len(session.messages) == 2
    assert out.getvalue().strip() == session.messages[1]["content"][0]["text"]


def test_words_prints_the_map_as_a_grid(picture):
    model, processor = tiny_model()
    torch.nn.init.zeros_(model.vm_head.weight)
    session = ChatSession(model, processor)
    session.add_image(picture)
    with torch.no_grad():
        pixels = processor.image_processor(Image.open(picture), return_tensors="pt")["pixel_values"]
        features = model.get_image_features(pixel_values=pixels).pooler_output[0]
        ids = [processor.tokenizer.convert_tokens_to_ids("Ġ" + word) for word in WORDS]
        model.vm_head.weight[ids] = torch.linalg.lstsq(features, 60 * torch.eye(4)).solution.T
    assert session.words().startswith("sky  roof\ntree door\na cat.png: 2 × 2 patches")


def test_a_plain_llava_chats_but_has_no_words(tiny, picture):
    session = ChatSession(*tiny, ChatConfig(max_new_tokens=2), has_words=False)
    session.add_image(picture)
    session.ask(QUESTION)
    with pytest.raises(ValueError, match="plain LLaVA"):
        session.words()


def test_a_conversation_longer_than_the_model_reads_is_told_and_can_be_cleared(session, picture):
    out = io.StringIO()
    chat(session, ["word " * 600, "/clear", "short"], out)
    assert "The model reads 512 tokens, got 3017 of conversation and room for 12" in out.getvalue()
    assert "start anew with /clear" in out.getvalue()
    assert session.messages[0]["content"][0]["text"] == "short"


def test_an_image_token_typed_by_hand_is_an_error(session):
    with pytest.raises(ValueError, match=r"Expected <image> once a picture, 0 in the prompt, got 1"):
        session.ask("Look at <image>")
    assert session.messages == []


def test_a_template_that_cannot_take_the_conversation_is_an_error(tiny, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(processor, "chat_template", "{% for m in messages %}{% endfor %}assistant:")
    with pytest.raises(ValueError, match="no place for a system text"):
        ChatSession(model, processor, ChatConfig(system="Be brief.")).ask("a")
    monkeypatch.setattr(processor, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="refuses the conversation: roles must alternate"):
        ChatSession(model, processor).ask("a")
    monkeypatch.setattr(processor, "chat_template", None)
    with pytest.raises(ValueError, match=r"save one as chat_template\.jinja"):
        ChatSession(model, processor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens", 0], "--max-new-tokens must be at least 1, got 0"),
        (["--temperature", -1], "--temperature must be 0 .* got -1"),
        (["--image", "no.png"], "Expected a picture file, found none at no.png"),
    ],
)
def test_what_cannot_work_is_told_before_the_model_is_read(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("no/such/model", *options)
