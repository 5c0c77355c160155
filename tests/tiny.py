"""Tiny models and tokenizers that tests build for themselves."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaProcessor,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from vwlmm import VisualWordLlavaConfig
from vwlmm.data.templates import CHAT_TEMPLATES

VOCAB, HIDDEN, IMAGE, PATCHES = 400, 64, 4, 4
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>"]
WORDS = ["What colour is this? It is red, green or blue. A picture of a shape. user assistant system USER ASSISTANT"]


def tiny_llama(**changes) -> LlamaConfig:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(**{**sizes, "num_key_value_heads": 2, "vocab_size": VOCAB, "pad_token_id": 3, **changes})


def tiny_opt() -> OPTConfig:
    sizes = {"hidden_size": HIDDEN, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTConfig(**sizes, vocab_size=VOCAB, word_embed_proj_dim=HIDDEN, max_position_embeddings=128, dropout=0.0)


def tiny_clip(**changes) -> CLIPVisionConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return CLIPVisionConfig(**{**sizes, "image_size": 28, "patch_size": 14, **changes})


def tiny_config(
    text: PreTrainedConfig | None = None, vision: PreTrainedConfig | None = None, **changes
) -> VisualWordLlavaConfig:
    """CLIP of 2×2 patches, Llama of two layers; `<image>` is word 4."""
    fields = {"image_token_index": IMAGE, "image_seq_length": PATCHES, **changes}
    return VisualWordLlavaConfig(text_config=text or tiny_llama(), vision_config=vision or tiny_clip(), **fields)


def byte_level_bpe(vocab_size: int, special: list[str], words: list[str]) -> Tokenizer:
    """As GPT-2, SmolLM2 and Qwen have: every text comes back letter for letter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the special words of ChatML and `<image>`."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(VOCAB, SPECIAL, WORDS),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", "<|im_start|>"],
        padding_side="left",
    )


def make_processor() -> LlavaProcessor:
    """ChatML, 28×28 pixels, 4 image tokens: what `tiny_config` reads."""
    size = {"height": 28, "width": 28}
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATES["chatml"],
    )


def image_batch(num_images: int = 2, seed: int = 1) -> dict:
    """A padded batch of two rows: one image each in the usual place, answers of unequal length."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(
        [
            [1, 50, 51, IMAGE, IMAGE, IMAGE, IMAGE, 60, 61, 70, 71, 6],
            [1, 52, IMAGE, IMAGE, IMAGE, IMAGE, 62, 72, 6, 3, 3, 3],
        ]
    )
    labels = torch.full_like(ids, -100)
    labels[0, 9:12], labels[1, 7:9] = ids[0, 9:12], ids[1, 7:9]
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": (ids != 3).long(),
        "pixel_values": torch.randn(num_images, 3, 28, 28, generator=generator),
    }


def text_batch() -> dict:
    """A row without a picture."""
    import torch

    ids = torch.tensor([[1, 50, 51, 60, 61, 70, 71, 6]])
    labels = torch.full_like(ids, -100)
    labels[0, 5:] = ids[0, 5:]
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
