"""Tiny checkpoints in the layouts that were published, and the released computation written out from its description.

No line of vwlmm is used here: names, shapes, tokens and logits are what a converted folder is compared with.
"""

import io
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, SIDE, PATCH = 64, 2, 4, 2, 96, 28, 14
SENTENCES = [
    "What colour is this? It is red, green or blue.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "USER: ASSISTANT: [INST] [/INST] What is in the picture?",
]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE = -200  # what the released code puts in the place of <image>


def prompt(kind: str, question: str) -> str:
    if kind == "mistral":
        return f"[INST] <image>\n{question} [/INST]"
    return f"{SYSTEM} USER: <image>\n{question} ASSISTANT:"


def save_tokenizer(folder: Path, *, legacy: bool | None = False, vocab: int = 360) -> None:
    """tokenizer.model as Llama's are made, with the two small files beside it."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=written,
        vocab_size=vocab,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config: dict[str, Any] = {**names, "add_bos_token": True, "tokenizer_class": "LlamaTokenizer", "pad_token": None}
    if legacy is not None:
        config["legacy"] = legacy
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 2048}))
    (folder / "special_tokens_map.json").write_text(json.dumps({**names, "pad_token": "<unk>"}))


def released_ids(folder: Path, text: str, *, legacy: bool) -> list[int]:
    """Cut at <image>, each part tokenised alone by the slow tokenizer, its own BOS dropped."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    with_blank = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    proto.normalizer_spec.add_dummy_prefix = False
    without = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    ids = [1]
    for number, part in enumerate(text.split("<image>")):
        ids += [IMAGE] * (number > 0)
        for place, chunk in enumerate(c for c in re.split(r"(<unk>|<s>|</s>)", part) if c):
            if chunk in special:
                ids.append(special[chunk])
            else:
                ids += (with_blank if legacy or place == 0 else without).encode(chunk)
    return ids


@dataclass
class Checkpoint:
    """A published model: its tensors by the published names, and what its configuration says."""

    kind: str  # llama or mistral
    tensors: dict[str, Tensor]
    tower: CLIPVisionModel
    pseudo: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def features(self, pixel_values: Tensor) -> Tensor:
        """[patches, hidden]: the tower's last hidden state but one without the class token, then the MLP."""
        with torch.no_grad():
            patches = self.tower(pixel_values, output_hidden_states=True).hidden_states[-2][0, 1:]
        t = self.tensors
        if "model.mm_projector.weight" in t:
            return F.linear(patches, t["model.mm_projector.weight"], t["model.mm_projector.bias"])
        hidden = F.gelu(F.linear(patches, t["model.mm_projector.0.weight"], t["model.mm_projector.0.bias"]))
        return F.linear(hidden, t["model.mm_projector.2.weight"], t["model.mm_projector.2.bias"])

    def logits(self, ids: list[int], pixel_values: Tensor) -> Tensor:
        """[seq, vocab] of a prompt with one picture, the placeholder replaced by the patches."""
        features, words = self.features(pixel_values), self.tensors["model.embed_tokens.weight"]
        if self.pseudo:
            features = torch.softmax(features @ self.tensors["vm_head.weight"].T, dim=-1) @ words
        place = ids.index(IMAGE)
        x = torch.cat([words[ids[:place]], features, words[ids[place + 1 :]]])
        return self.decode(x) @ self.tensors["lm_head.weight"].T

    def decode(self, x: Tensor) -> Tensor:
        """Llama's decoder (Mistral's is the same within its window), over one sequence `[seq, hidden]`."""
        t, dim = self.tensors, HIDDEN // HEADS
        angles = torch.outer(
            torch.arange(len(x)).float(), self.config["rope_theta"] ** (-torch.arange(0, dim, 2).float() / dim)
        )
        cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

        def rotate(y: Tensor) -> Tensor:  # [heads, seq, dim]
            halves = torch.cat([-y[..., dim // 2 :], y[..., : dim // 2]], -1)
            return y * cos + halves * sin

        def norm(y: Tensor, name: str) -> Tensor:
            return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * t[name]

        for n in range(LAYERS):
            layer = f"model.layers.{n}"
            y = norm(x, f"{layer}.input_layernorm.weight")
            q, k, v = (
                (y @ t[f"{layer}.self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, dim)).transpose(0, 1)
                for name in "qkv"
            )
            q, k = rotate(q), rotate(k).repeat_interleave(HEADS // KV_HEADS, 0)
            v = v.repeat_interleave(HEADS // KV_HEADS, 0)
            scores = q @ k.transpose(1, 2) / math.sqrt(dim)
            scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf)
            mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
            x = x + mixed @ t[f"{layer}.self_attn.o_proj.weight"].T
            y = norm(x, f"{layer}.post_attention_layernorm.weight")
            gate = F.silu(y @ t[f"{layer}.mlp.gate_proj.weight"].T) * (y @ t[f"{layer}.mlp.up_proj.weight"].T)
            x = x + gate @ t[f"{layer}.mlp.down_proj.weight"].T
        return norm(x, "model.norm.weight")

    def greedy(self, ids: list[int], pixel_values: Tensor, steps: int) -> list[int]:
        answer: list[int] = []
        for _ in range(steps):
            answer.append(int(self.logits(ids + answer, pixel_values)[-1].argmax()))
            if answer[-1] == 2:
                break
        return answer


def save_tower(folder: Path) -> CLIPVisionModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH)).eval()
    tower.save_pretrained(folder)
    clip_processor().save_pretrained(folder)
    return tower


def clip_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def padded(picture: Image.Image) -> Image.Image:
    """LLaVA's expand2square with the mean colour, truncated to whole numbers."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in clip_processor().image_mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def make(tower: CLIPVisionModel, tower_name: str, *, kind: str = "llama", pseudo: bool = False, **changes: Any):
    """A random checkpoint of the released code: `kind` llama or mistral, `pseudo` for the pseudo-image class."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    vocab, kv = 360, HIDDEN // HEADS * KV_HEADS
    tensors = {"model.embed_tokens.weight": draw(vocab, HIDDEN)}
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        shapes = {"q": (HIDDEN, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, HIDDEN)}
        tensors |= {f"{layer}.self_attn.{name}_proj.weight": draw(*shape) for name, shape in shapes.items()}
        tensors |= {f"{layer}.mlp.{name}_proj.weight": draw(INNER, HIDDEN) for name in ("gate", "up")}
        tensors[f"{layer}.mlp.down_proj.weight"] = draw(HIDDEN, INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = 1 + draw(HIDDEN)
    tensors["model.norm.weight"] = 1 + draw(HIDDEN)
    tensors |= {"model.mm_projector.0.weight": draw(HIDDEN, 32), "model.mm_projector.0.bias": draw(HIDDEN)}
    tensors |= {"model.mm_projector.2.weight": draw(HIDDEN, HIDDEN), "model.mm_projector.2.bias": draw(HIDDEN)}
    tensors |= {"lm_head.weight": draw(vocab, HIDDEN), "vm_head.weight": draw(vocab, HIDDEN)}
    classes = {"llama": "vwPifLlamaForCausalLM" if pseudo else "vwLlamaForCausalLM", "mistral": "vwMistralForCausalLM"}
    config = {
        "architectures": [classes[kind]],
        "model_type": "llava",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        "transformers_version": "4.35.0",
        "mm_vision_tower": tower_name,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 32,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        **changes,
    }
    return Checkpoint(kind, tensors, tower, pseudo, config)


def tower_tensors(tower: CLIPVisionModel) -> dict[str, Tensor]:
    """The tower's tensors by the names inside a released checkpoint."""
    names = {name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    return {f"model.vision_tower.vision_tower.vision_model.{name}": tensor for name, tensor in names.items()}


def save(checkpoint: Checkpoint, folder: Path, *, tensors: dict[str, Tensor] | None = None, kind: str = "bin") -> Path:
    """Writes the folder with two shards, `.bin` as PyTorch saves them or safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    tensors = tensors or checkpoint.tensors
    names = list(tensors)
    stem, suffix = ("pytorch_model", "bin") if kind == "bin" else ("model", "safetensors")
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{stem}-{number:05d}-of-00002.{suffix}"
        held = {name: tensors[name].detach().clone().contiguous() for name in part}
        if kind == "bin":
            torch.save(held, folder / shard)
        else:
            save_file(held, folder / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(part, shard)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
