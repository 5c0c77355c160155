"""The tokenizer of a published LLaVA checkpoint, with the exact pieces of the released code, in one fast tokenizer.

The released code cuts a prompt at every `<image>` and tokenises the parts one by one with the slow SentencePiece
tokenizer, so each part begins with SentencePiece's blank. A fast tokenizer that only learns the word `<image>` gives
other ids after every picture.
"""

import json
import re
from pathlib import Path
from typing import Any

from vwlmm.assembly import IMAGE_TOKEN

BLANK = "▁"
PROBES = (
    "A chat. USER: <image>\nWhat is in this picture? ASSISTANT:",
    "[INST] <image>\nWhat colour? [/INST]",
    "<image>",
    "<image><image>\n 3 naïve 猫 🙂 <image> x",
    "  two  blanks ",
)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, `<image>` added behind its words.

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: its pieces could not be reproduced.
    """
    model_file = folder / "tokenizer.model"
    if not model_file.is_file() and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} holds no tokenizer: expected tokenizer.model or tokenizer.json there.")
    loaded = _loaded(folder, model_file)
    content = json.loads(loaded.backend_tokenizer.to_str())
    proto = _proto(model_file) if model_file.is_file() else None
    add_dummy_prefix = proto.normalizer_spec.add_dummy_prefix if proto else _prepends(content)
    if add_dummy_prefix or proto:
        is_legacy = _is_legacy(folder, content, proto)
        _tokenise_parts_alone(content, proto, add_dummy_prefix, begin=loaded.bos_token, is_legacy=is_legacy)
    if IMAGE_TOKEN not in loaded.get_vocab():
        content["added_tokens"].append(_added(IMAGE_TOKEN, len(loaded)))
    tokenizer = _wrapped(loaded, content)
    if proto:
        _check_pieces(tokenizer, proto, model_file)
    return tokenizer


def _loaded(folder: Path, model_file: Path) -> Any:
    from transformers import AutoTokenizer, LlamaTokenizer

    if model_file.is_file():
        # Not AutoTokenizer: it goes by config.json, whose model_type "llava" means another model to it.
        return LlamaTokenizer.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _proto(model_file: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    try:
        return messages.ModelProto.FromString(model_file.read_bytes())
    except DecodeError:
        raise ValueError(f"{model_file} is no SentencePiece model, or damaged. Fetch it again.") from None


def _prepends(content: dict[str, Any]) -> bool:
    """True when a tokenizer.json puts a blank before a text, in one of the two ways in use."""
    before = content.get("pre_tokenizer") or {}
    steps = [before, *before.get("pretokenizers", [])]
    normalizer = content.get("normalizer") or {}
    steps += [normalizer, *normalizer.get("normalizers", [])]
    return any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _is_legacy(folder: Path, content: dict[str, Any], proto: Any) -> bool:
    """True: text after a word such as `</s>` begins with the blank too. Left out means so, as when these models were made."""
    config = folder / "tokenizer_config.json"
    told = json.loads(config.read_text()).get("legacy") if config.is_file() else None
    if told is None and proto is None:
        return (content.get("pre_tokenizer") or {}).get("prepend_scheme") != "first"
    return told is not False


def _tokenise_parts_alone(
    content: dict[str, Any], proto: Any, add_dummy_prefix: bool, *, begin: str | None, is_legacy: bool
) -> None:
    """Makes every part between pictures a text of its own: SentencePiece's steps as a normaliser, which runs per part."""
    steps: list[dict[str, Any]] = []
    if proto and proto.normalizer_spec.precompiled_charsmap:
        import base64

        charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if proto and proto.normalizer_spec.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    others = [token for token in content["added_tokens"] if token["content"] not in (IMAGE_TOKEN, begin)]
    if add_dummy_prefix and is_legacy:
        steps.append({"type": "Prepend", "prepend": BLANK})
    elif add_dummy_prefix:
        # Normalised words are found after this step, so the text behind them does not get a blank.
        for token in others:
            token["normalized"] = True
        words = "|".join(re.escape(token["content"]) for token in others)
        pattern = f"\\A(?!{words}|\\z)" if words else "\\A(?!\\z)"
        steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": BLANK})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": BLANK})
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    content["pre_tokenizer"] = None


def _added(word: str, id_: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id_, "content": word, **flags}


def _wrapped(loaded: Any, content: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    given = {name: getattr(loaded, name) for name in names if getattr(loaded, name) is not None}
    # Llama has no padding token of its own; padded positions are masked, so any known token serves.
    given.setdefault("pad_token", given.get("unk_token") or given["eos_token"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        **given,
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=loaded.model_max_length,
        padding_side="left",  # answers are made in batches
        clean_up_tokenization_spaces=False,
    )


def _check_pieces(tokenizer: Any, proto: Any, model_file: Path) -> None:
    """Compares the ids of some prompts with SentencePiece's own, part by part."""
    import sentencepiece

    pieces: Any = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    for probe in PROBES:
        expected: list[int] = []
        for number, part in enumerate(probe.split(IMAGE_TOKEN)):
            expected += [image] * (number > 0) + pieces.encode(part)
        got = tokenizer(probe, add_special_tokens=False)["input_ids"]
        if got != expected:
            raise ValueError(
                f"{model_file}: the fast tokenizer made from it gives other pieces than SentencePiece for {probe!r} "
                f"({got} for {expected}): this kind of SentencePiece model is not supported."
            )
