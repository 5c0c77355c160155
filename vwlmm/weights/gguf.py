"""A model as GGUF for llama.cpp: the LLM through llama.cpp's own converter, tower and projector beside it, both read back.

export_gguf("checkpoints/visual_words/4_final", "checkpoints/gguf")    # or: vwlmm export MODEL OUT --to gguf
llama.cpp's converter refuses LLaVA-1.5's CLIP tower; its file follows what `clip.cpp` reads (projector type `mlp`).
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwlmm.weights.export import export_llava
from vwlmm.weights.folder import finished_folder
from vwlmm.weights.reading import WeightFiles, open_weights
from vwlmm.weights.sources import read_json

TEXT_FILE, VISION_FILE = "model.gguf", "mmproj.gguf"
OUTTYPES = ("f32", "f16", "bf16", "auto")
CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
WORDS = "language_model.model.embed_tokens.weight"
Expected = dict[str, Callable[[], Tensor]]  # GGUF name → the tensor that should be there


def export_gguf(
    model: str | Path, out: str | Path, *, converter: str | None = None, outtype: str = "auto"
) -> list[str]:
    """Writes `model.gguf` and `mmproj.gguf`, and compares every tensor in them with the model's.

    Args:
        model: a folder or Hub id that `export_llava` takes.
        out: the folder to make; it appears when both files have been read back.
        converter: llama.cpp's convert_hf_to_gguf.py; None looks for it.
        outtype: dtype of the LLM's matrices: f32, f16, bf16 or auto (the model's own).

    Returns:
        What was written, as sentences.

    Raises:
        FileNotFoundError: no converter.
        ValueError: not a Llama or Mistral with a CLIP tower, the converter failed, or a file differs from the model.
    """
    if outtype not in OUTTYPES:
        raise ValueError(
            f"outtype is one of {', '.join(OUTTYPES)}: got {outtype!r}. Quantise with llama-quantize afterwards."
        )
    command = find_converter(converter)
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ImportError("Reading GGUF files back needs the gguf package: pip install gguf") from None
    with finished_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        plain = Path(scratch) / "plain"
        notes = export_llava(model, plain)
        config = read_json(plain / "config.json")
        if config["text_config"]["model_type"] not in ("llama", "mistral"):
            raise ValueError(f"GGUF export knows Llama and Mistral, not {config['text_config']['model_type']!r}.")
        _without_generation_spans(plain)
        weights = open_weights(plain)
        _convert_text(command, plain, folder / TEXT_FILE, outtype)
        text = check_gguf(folder / TEXT_FILE, _text_tensors(config, weights))
        tensors = _vision_tensors(config, weights)
        _write_vision(folder / VISION_FILE, config, plain, tensors)
        vision = check_gguf(folder / VISION_FILE, tensors)
    return [*notes, f"{TEXT_FILE}: {text} tensors, {VISION_FILE}: {vision}; read back and equal to the model's"]


def find_converter(given: str | None) -> list[str]:
    """The command that runs llama.cpp's converter.

    Raises:
        FileNotFoundError: it is not where it should be, or nowhere.
    """
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"llama.cpp's converter was expected at {given}: there is no such file.")
        return [sys.executable, given] if given.endswith(".py") else [given]
    for name in CONVERTERS:
        beside = Path("llama.cpp") / name
        found = shutil.which(name) or (str(beside) if beside.is_file() else None)
        if found:
            return [sys.executable, found] if found.endswith(".py") else [found]
    raise FileNotFoundError(
        f"GGUF is made by llama.cpp's converter, and none was found ({' or '.join(CONVERTERS)} on PATH, or in ./llama.cpp): "
        "get https://github.com/ggml-org/llama.cpp and name the file with --converter."
    )


def _without_generation_spans(plain: Path) -> None:
    """llama.cpp's Jinja does not know the marks that say what is learned; they change nothing in a prompt."""
    marks = r"{%-?\s*(?:end)?generation\s*-?%}"
    for path in (plain / "chat_template.jinja", plain / "tokenizer_config.json", plain / "processor_config.json"):
        if path.is_file():
            path.write_text(re.sub(marks, "", path.read_text(encoding="utf-8")), encoding="utf-8")


def _convert_text(command: list[str], plain: Path, out: Path, outtype: str) -> None:
    done = subprocess.run(
        [*command, str(plain), "--outfile", str(out), "--outtype", outtype], capture_output=True, text=True
    )
    if done.returncode or not out.is_file():
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ValueError(
            f"llama.cpp's converter failed: {said[-1].strip() if said else f'exit code {done.returncode}'}"
        )


def _text_tensors(config: dict[str, Any], weights: WeightFiles) -> Expected:
    import gguf

    text = config["text_config"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, text["num_hidden_layers"])
    heads = {"q_proj": text["num_attention_heads"], "k_proj": text["num_key_value_heads"]}
    expected: Expected = {}
    for name in weights.tensors:
        if not name.startswith("language_model."):
            continue
        inside = name.removeprefix("language_model.")
        found = names.get_name(inside, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"GGUF has no name for {name}.")
        read = partial(weights.read, name)
        part = inside.split(".")[-2]
        expected[found] = partial(_halves_apart, read, heads[part]) if part in heads else read
    return expected


def _halves_apart(read: Callable[[], Tensor], heads: int) -> Tensor:
    """Queries and keys as llama.cpp rotates them: the two halves of a head interleaved."""
    weight = read()
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _vision_tensors(config: dict[str, Any], weights: WeightFiles) -> Expected:
    """Tower up to the block after the one that is read, and projector, by the names that clip.cpp looks up."""
    import gguf

    vision = config["vision_config"]
    if vision["model_type"] != "clip_vision_model" or config["vision_feature_select_strategy"] != "default":
        raise ValueError(f"llama.cpp's LLaVA reads a CLIP tower without its class token: got {vision['model_type']!r}.")
    if config["projector_hidden_act"] != "gelu":
        raise ValueError("llama.cpp's LLaVA has a projector of two layers with GELU between: this one is linear.")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision["num_hidden_layers"])
    blocks = _num_blocks(config)
    expected: Expected = {}
    for name in weights.tensors:
        layer = re.search(r"encoder\.layers\.(\d+)\.", name)
        if name.startswith("multi_modal_projector."):
            number, kind = name.removeprefix("multi_modal_projector.linear_").split(".")
            expected[f"mm.{2 * int(number) - 2}.{kind}"] = partial(weights.read, name)
        # The norm behind the last block would be applied whatever block is read.
        elif name.startswith("vision_tower.") and "post_layernorm" not in name:
            if layer and int(layer.group(1)) >= blocks:
                continue
            inside = "vision_tower.vision_model." + re.sub(r"^vision_tower\.(vision_model\.)?", "", name)
            found = names.get_name(inside, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise ValueError(f"GGUF has no name for {name}.")
            expected[found] = partial(weights.read, name)
    return expected


def _feature_block(config: dict[str, Any]) -> int:
    """After how many blocks the hidden state is read."""
    layer = config["vision_feature_layer"]
    if not isinstance(layer, int):
        raise ValueError(f"llama.cpp's LLaVA reads one hidden state of the tower: got vision_feature_layer {layer}.")
    return layer if layer >= 0 else config["vision_config"]["num_hidden_layers"] + 1 + layer


def _num_blocks(config: dict[str, Any]) -> int:
    # One more than is read: clip.cpp stops before the last block when it does not know the key for it.
    return min(_feature_block(config) + 1, config["vision_config"]["num_hidden_layers"])


def _write_vision(path: Path, config: dict[str, Any], plain: Path, tensors: Expected) -> None:
    import gguf

    vision, processor = config["vision_config"], read_json(plain / "processor_config.json")["image_processor"]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)  # read by versions before the projector type
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_block_count(_num_blocks(config))
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_image_mean(processor["image_mean"])
    writer.add_vision_image_std(processor["image_std"])
    writer.add_vision_use_gelu(vision["hidden_act"] == "gelu")  # otherwise CLIP's quick GELU
    writer.add_array("clip.vision.feature_layer", [_feature_block(config)])
    for name, read in tensors.items():
        tensor = read()
        # clip.cpp wants the small ones in fp32, and half precision is enough of the matrices as in its own files.
        half = tensor.ndim > 1 and tensor.dtype != torch.float32 and "position" not in name
        writer.add_tensor(name, (tensor.half() if half else tensor.float()).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_gguf(path: Path, expected: Expected) -> int:
    """Reads a file back and compares each tensor with the one it was made from, in the file's precision.

    Returns:
        How many tensors were equal.

    Raises:
        ValueError: a tensor is missing, unknown or different.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    # Tables that llama.cpp's converter computes itself.
    found = {tensor.name: tensor for tensor in reader.tensors if not tensor.name.startswith("rope_freqs")}
    if set(found) != set(expected):
        missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        raise ValueError(
            f"{path.name} does not hold the model's tensors. Missing: {missing[:8]}. Unexpected: {more[:8]}."
        )
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for name, read in expected.items():
        kind = found[name].tensor_type.name
        if kind not in dtypes:
            raise ValueError(f"{path.name}: {name} is {kind}, which is not read back exactly: take f32, f16 or bf16.")
        there = torch.from_numpy(gguf.dequantize(found[name].data, found[name].tensor_type).copy()).float()
        wanted = read().float().to(dtypes[kind]).float()
        if there.numel() != wanted.numel() or not torch.equal(there.reshape(-1), wanted.reshape(-1)):
            raise ValueError(f"{path.name}: {name} differs from the model's tensor.")
    return len(found)
