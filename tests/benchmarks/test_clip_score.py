"""CLIP-S and RefCLIP-S against the formulas written out, on a tiny random CLIP."""

import pytest
import torch
from PIL import Image
from scoring import run_score, write
from tiny import make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, LlamaConfig, LlamaForCausalLM

from vwlmm.benchmarks.clip_score import ClipScorer

CAPTIONS = {1: "a red shape", 2: "green", 3: ""}
REFERENCES = {1: ["red", "a red thing"], 2: ["it is green", "blue"], 3: ["a shape", "what is this"]}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of two layers, saved with its processor; fixed weights."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = make_tokenizer()
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**text, **ids, "pad_token_id": tokenizer.pad_token_id},
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer.model_max_length = 24
    # A text ends in its end token, where CLIP reads it.
    ends = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = ends
    tokenizer.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    for number, colour in {1: (220, 30, 30), 2: (30, 200, 40), 3: (20, 40, 230)}.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    return folder


def naive(clip, shown):
    """The formulas for one picture after another, by the model's own parts."""
    scorer = ClipScorer.load(clip, device="cpu")
    model = scorer.model

    def text(caption):
        inputs = scorer.tokenizer("A photo depicts " + caption, return_tensors="pt")
        return model.text_projection(model.text_model(**inputs).pooler_output)[0]

    figures = {}
    with torch.no_grad():
        for number, caption in CAPTIONS.items():
            pixels = scorer.image_processor(Image.open(shown / f"{number}.png"), return_tensors="pt")["pixel_values"]
            picture = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
            cosine = torch.cosine_similarity
            s = 2.5 * max(float(cosine(picture, text(caption), dim=0)), 0)
            r = max(max(float(cosine(text(caption), text(ref), dim=0)) for ref in REFERENCES[number]), 0)
            figures[number] = (s, 2 * s * r / (s + r) if s + r else 0.0)
    return figures


def test_the_scores_are_the_papers_formulas(clip, shown):
    scorer = ClipScorer.load(clip, device="cpu")
    found = scorer.score([shown / f"{n}.png" for n in CAPTIONS], list(CAPTIONS.values()), list(REFERENCES.values()))
    expected = naive(clip, shown)
    assert found.clip == pytest.approx([s for s, _ in expected.values()], abs=1e-5)
    assert found.ref_clip == pytest.approx([r for _, r in expected.values()], abs=1e-5)
    assert any(found.clip)


def test_the_command_adds_them_to_the_caption_metrics(tmp_path, clip, shown):
    annotations = write(
        tmp_path / "captions.json",
        {
            "images": [{"id": n, "file_name": f"{n}.png"} for n in CAPTIONS],
            "annotations": [
                {"image_id": n, "id": 10 * n + i, "caption": text}
                for n, texts in REFERENCES.items()
                for i, text in enumerate(texts)
            ],
        },
    )
    answers = write(tmp_path / "a.json", [{"image_id": n, "caption": text} for n, text in CAPTIONS.items()])
    result = run_score(
        tmp_path, "coco_captions", annotations, answers, "--images", shown, "--option", f"clip={clip}", "tokenizer=own"
    )
    expected = naive(clip, shown)
    assert result["metrics"]["CLIP-S"] == pytest.approx(sum(s for s, _ in expected.values()) / 3, abs=1e-5)
    assert result["metrics"]["RefCLIP-S"] == pytest.approx(sum(r for _, r in expected.values()) / 3, abs=1e-5)
    assert {"CLIP-S", "RefCLIP-S"} <= set(result["details"][0])


def test_a_model_that_is_no_clip_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=10)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a CLIP model"):
        ClipScorer.load(tmp_path)
