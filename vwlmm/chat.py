"""`vwlmm chat MODEL`: talk with a model about pictures in the terminal, or ask once with `--prompt`.

vwlmm chat checkpoints/visual_words/4_final --image cat.jpg --prompt "What is this?"
"""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import TextStreamer, set_seed

from vwlmm.options import add_device, add_dtype
from vwlmm.visualize import load_picture, text_grid, visual_word_map

EXAMPLE = """\
examples:
  vwlmm chat checkpoints/visual_words/4_final --image cat.jpg
  vwlmm chat checkpoints/visual_words/4_final --image cat.jpg --prompt "What is this?"
      answers once and prints nothing but the answer
"""

HELP = """\
/image FILE  add a picture to the next message
/words       the visual word of every patch of the last picture
/clear       forget the conversation and its pictures
/help        this text
/quit        leave (so does Ctrl-D); Ctrl-C stops an answer"""


@dataclass(frozen=True)
class ChatConfig:
    """How a conversation is answered."""

    max_new_tokens: int = 128  # tokens of one answer
    temperature: float = 0.0  # 0 takes the likeliest token each time, above 0 draws
    seed: int = 0  # of the draws
    system: str | None = None  # text before the conversation, for templates that have a place for it

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1, got {self.max_new_tokens}.")
        if self.temperature < 0:
            raise ValueError(f"--temperature must be 0 (no draws) or more, got {self.temperature}.")


class Answer(TextStreamer):
    """Writes an answer while it is made.

    Unlike its parent it decodes the whole answer each time, so that what was written is letter for letter the text of
    the finished answer, with the blanks after line breaks and without waiting for the end of a word.
    """

    def __init__(self, tokenizer: Any, out: TextIO | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.out = out
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt's tokens, which are not shown, then the answer's, one at a time."""
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        self.token_cache.extend(value.flatten().tolist())
        # An incomplete letter decodes to replacement characters: it waits for its other bytes.
        self._write(self._decoded().rstrip("\ufffd"))

    def end(self) -> None:
        """Writes what still waited, when the answer is complete or was stopped."""
        self._write(self._decoded())

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))

    def _write(self, text: str) -> None:
        if self.out is not None:
            self.out.write(text[len(self.text) :])
            self.out.flush()
        self.text = text


class ChatSession:
    """A conversation: messages with pictures, kept until `clear`.

    Args:
        model: a LLaVA model, with a `vm_head` if its words are to be shown.
        processor: its processor, with a chat template.
        config: how answers are made.
        has_words: False for a model without a trained VM head, which has no words to show.

    Raises:
        ValueError: the processor has no chat template.
    """

    def __init__(self, model: Any, processor: Any, config: ChatConfig | None = None, *, has_words: bool = True) -> None:
        if not processor.chat_template:
            raise ValueError(
                "Chatting needs a chat template, and the model's processor has none: "
                "save one as chat_template.jinja in the model's folder."
            )
        self.model, self.processor, self.config = model, processor, config or ChatConfig()
        self.has_words = has_words
        self.stopped = False  # True: Ctrl-C ended the last answer
        self.clear()
        set_seed(self.config.seed)

    def clear(self) -> None:
        """Forgets the messages and pictures."""
        self.messages: list[dict[str, Any]] = []
        if self.config.system is not None:
            self.messages.append({"role": "system", "content": [{"type": "text", "text": self.config.system}]})
        self.pictures: list[Image.Image] = []  # one for each image part of the messages
        self.waiting: list[Image.Image] = []  # for the next message
        self.last_picture: Path | None = None

    def add_image(self, path: str | Path) -> None:
        """Adds a picture to the next message.

        Raises:
            FileNotFoundError: no such file.
            ValueError: Pillow cannot read it.
        """
        self.waiting.append(load_picture(path))
        self.last_picture = Path(path)

    def ask(self, text: str, out: TextIO | None = None) -> str:
        """Answers a message, writing to `out` meanwhile, and remembers both.

        Ctrl-C ends the answer early: what was said until then is kept. A question that gets no answer, because of an
        error or because Ctrl-C came before the first word, is forgotten, and its pictures wait for the next one.

        Raises:
            ValueError: the conversation is longer than the model reads, or does not fit the chat template.
        """
        # A line break after the picture, as in LLaVA's data: the prompt is the one that training has seen.
        said = f"\n{text}" if self.waiting else text
        content = [{"type": "image"} for _ in self.waiting] + [{"type": "text", "text": said}]
        messages = [*self.messages, {"role": "user", "content": content}]
        pictures = self.pictures + self.waiting
        answer = Answer(self.processor.tokenizer, out)
        self.stopped = False
        try:
            inputs = self._inputs(messages, pictures)
            self.model.generate(**inputs, **self._generate_options(), streamer=answer)
        except KeyboardInterrupt:
            self.stopped = True
            answer.end()
            if not answer.text.strip():
                return ""
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer.text.strip()}]}]
        self.pictures, self.waiting = pictures, []
        return answer.text

    def words(self, max_width: int | None = None) -> str:
        """The last picture's visual words as a text grid and a line of numbers; `max_width` in characters.

        Raises:
            ValueError: no picture was given yet, or the model has no VM head.
        """
        if not self.has_words:
            raise ValueError("/words needs a VM head, and this model is a plain LLaVA: chat with a visual-words model.")
        if self.last_picture is None:
            raise ValueError("/words shows the last picture, and there is none yet: add one with /image FILE.")
        word_map = visual_word_map(self.model, self.processor, self.last_picture, top_k=1)
        return f"{text_grid(word_map, max_width=max_width)}\n{word_map.summary()}"

    def _inputs(self, messages: list[dict[str, Any]], pictures: list[Image.Image]) -> Any:
        """Token ids and pixel values of the conversation, on the model's device."""
        try:
            prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise ValueError(f"The model's chat template refuses the conversation: {error}") from error
        # Templates of other LLaVAs write the line break after a picture themselves.
        image = self.processor.image_token
        prompt = prompt.replace(f"{image}\n\n", f"{image}\n")
        system = self.config.system
        if system is not None and system.strip() not in prompt:
            raise ValueError("The model's chat template has no place for a system text: leave --system out.")
        places = prompt.count(image)
        if places != len(pictures):
            raise ValueError(
                f"Expected {image} once a picture, {len(pictures)} in the prompt, got {places}: "
                "add pictures with /image FILE or --image; the chat template must write it once for each."
            )
        bos = self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=prompt,
            images=pictures or None,
            return_tensors="pt",
            # Most templates write the first token themselves; the model was not trained to see it twice.
            add_special_tokens=not (bos and prompt.startswith(bos)),
        )
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        length = inputs["input_ids"].shape[1]
        if limit is not None and length + self.config.max_new_tokens > limit:
            raise ValueError(
                f"The model reads {limit} tokens, got {length} of conversation and room for "
                f"{self.config.max_new_tokens} of answer: start anew with /clear or lower --max-new-tokens."
            )
        return inputs.to(self.model.device, self.model.dtype)

    def _generate_options(self) -> dict[str, Any]:
        tokenizer, defaults = self.processor.tokenizer, self.model.generation_config
        end = defaults.eos_token_id if defaults.eos_token_id is not None else tokenizer.eos_token_id
        pad = defaults.pad_token_id if defaults.pad_token_id is not None else tokenizer.pad_token_id
        options: dict[str, Any] = {"eos_token_id": end, "pad_token_id": pad}
        options["max_new_tokens"] = self.config.max_new_tokens
        if self.config.temperature > 0:
            return {**options, "do_sample": True, "temperature": self.config.temperature}
        # None: a saved generation config may set these for sampling, and greedy decoding warns of them.
        return {**options, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `vwlmm chat`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"Talk with a model about pictures. While chatting:\n\n{HELP}"
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of the model")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="picture of the first message; repeatable",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="answer this once, print the answer and leave")
    parser.add_argument("--system", metavar="TEXT", help="system text, for templates that have a place for one")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="per answer (default: 128)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy, above 0 draws (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    add_device(parser)
    add_dtype(parser)


def main(args: argparse.Namespace) -> int:
    """Runs `vwlmm chat`; returns 130 when Ctrl-C stopped a one-shot answer, else 0.

    Raises:
        FileNotFoundError: a picture does not exist.
        ValueError: an option, a picture or the model cannot be used.
    """
    # All that can be wrong is found before the model, which takes the longest, is loaded.
    config = ChatConfig(args.max_new_tokens, args.temperature, args.seed, args.system)
    for image in args.image:
        load_picture(image)
    from vwlmm.loading import has_vm_head, load_model

    # A plain LLaVA can chat too. Its VM head starts random, so its words would be noise.
    model, processor = load_model(args.model, dtype=args.dtype, device=args.device, require_vm_head=False)
    session = ChatSession(model, processor, config, has_words=has_vm_head(args.model))
    for image in args.image:
        session.add_image(image)
    if args.prompt is not None:
        return answer_once(session, args.prompt, sys.stdout)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{args.model} is listening. /help shows the commands.")
    chat(session, typed_lines() if interactive else sys.stdin, sys.stdout)
    return 0


def answer_once(session: ChatSession, prompt: str, out: TextIO) -> int:
    """Writes the answer and nothing else; returns 0, or 130 (as shells do) when Ctrl-C stopped it."""
    session.ask(prompt, out)
    out.write("\n")
    return 130 if session.stopped else 0


def typed_lines() -> Iterator[str]:
    """The lines that a person types, until Ctrl-D; Ctrl-C drops the line."""
    # Importing readline is what gives input() its history and line editing. Windows has none: its console edits lines.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D leaves)")


def chat(session: ChatSession, lines: Iterable[str], out: TextIO) -> None:
    """Answers lines one after the other until they end or one is `/quit`; a mistake is told and the next line read."""
    for line in lines:
        line = line.strip()
        if not line:
            continue
        if line == "/quit":
            return
        try:
            if line.startswith("/"):
                out.write(run_command(session, line) + "\n")
            else:
                session.ask(line, out)
                out.write("\n")
        except (ValueError, OSError) as error:
            out.write(f"{error}\n")
        except KeyboardInterrupt:
            out.write("stopped\n")
        out.flush()


def run_command(session: ChatSession, line: str) -> str:
    """Does what a line such as `/image cat.jpg` says and returns what to tell the user.

    Raises:
        FileNotFoundError: no such picture.
        ValueError: no such command, or it cannot be done now.
    """
    command, _, rest = line.partition(" ")
    rest = rest.strip().strip("'\"")
    if command == "/image":
        if not rest:
            raise ValueError("/image needs a file: /image cat.jpg")
        session.add_image(Path(rest).expanduser())
        return f"{rest} goes with the next message."
    if command == "/words":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        return session.words(width)
    if command == "/clear":
        session.clear()
        return "The conversation and its pictures are forgotten."
    if command == "/help":
        return HELP
    raise ValueError(f"Expected /image, /words, /clear, /help or /quit, got {command}.")
