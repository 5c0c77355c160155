"""Pictures and texts in one space: of visual words, of word embeddings, of a dual encoder."""

from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPImageProcessorPil

from vwlmm.benchmarks.engines import Arithmetician, Embedder, PatchEmbedder
from vwlmm.evaluation.embedding import (
    DESCRIPTION_TOKENS,
    PICTURE_OF,
    DualEncoderEmbedder,
    VisualWordEmbedder,
    WordEmbedder,
    make_embedder,
    words_of,
)
from vwlmm.evaluation.generation import Pictures, greedy, model_inputs

IMAGES = ["red.png", "green.png", "blue.png"]


@pytest.fixture
def opened(toy_data):
    pictures = Pictures(toy_data / "images", 2)
    yield pictures
    pictures.close()


@pytest.fixture(params=[True, False], ids=["visual words", "word embeddings"])
def embedder(request, loaded, opened):
    return make_embedder(loaded.model, loaded.processor, opened, has_words=request.param)


def test_the_space_depends_on_the_model(loaded, opened):
    kinds = {has: type(make_embedder(loaded.model, loaded.processor, opened, has_words=has)) for has in (True, False)}
    assert kinds == {True: VisualWordEmbedder, False: WordEmbedder}


def test_embeddings_have_length_one_and_lie_in_one_space(embedder):
    assert isinstance(embedder, Embedder)
    images, texts = embedder.embed_images(IMAGES), embedder.embed_texts(["red", "It is green or blue."])
    assert images.shape[1] == texts.shape[1]
    for rows in (images, texts):
        assert rows.dtype == torch.float32
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)


def test_pictures_are_embedded_one_by_one_as_together(embedder):
    together = embedder.embed_images(IMAGES)
    alone = torch.cat([embedder.embed_images([image]) for image in IMAGES])
    assert torch.allclose(together, alone, atol=1e-5)


def test_patches_stand_in_rows_and_columns(embedder):
    assert isinstance(embedder, PatchEmbedder)
    assert embedder.embed_patches("red.png").shape[:2] == (2, 2)


def test_a_text_is_the_words_in_it(loaded, opened):
    embedder = VisualWordEmbedder(loaded.model, loaded.processor, opened)
    one, twice, capital, other = embedder.embed_texts(["a", "a a", " A", "?"])
    assert one @ twice == pytest.approx(1)
    assert one @ capital == pytest.approx(1)
    assert one @ other == 0


def test_tokens_that_differ_in_a_blank_or_capitals_are_one_word(loaded):
    tokenizer = loaded.processor.tokenizer
    words, count = words_of(tokenizer, len(tokenizer) + 3)
    assert len(words) == len(tokenizer) + 3
    assert words.max() == count - 1
    number = lambda text: words[tokenizer(text, add_special_tokens=False)["input_ids"][0]]  # noqa: E731
    assert number("A") == number("a") == number(" a")
    assert number("a") != number("b")


def test_a_text_without_words_is_refused(embedder):
    with pytest.raises(ValueError, match="needs words"):
        embedder.embed_texts(["red", ""])


def test_arithmetic_adds_and_subtracts(embedder):
    assert isinstance(embedder, Arithmetician)
    alone = embedder.nearest_words(["red.png"], [], 5)
    assert len(alone) == len(set(alone)) == 5
    assert embedder.nearest_words(["red.png", "blue.png"], ["blue.png"], 5) == alone
    assert embedder.nearest_words(["green.png"], ["red.png"], 5) != alone


def test_the_description_of_one_picture_is_what_the_model_writes_about_it(embedder, loaded, opened):
    text = f"<s><image>{PICTURE_OF}"
    inputs = model_inputs(loaded.processor, [text], [opened.pool.submit(_load, opened, "red.png").result()])
    options = greedy(loaded.model, loaded.processor.tokenizer, DESCRIPTION_TOKENS)
    with torch.no_grad():
        written = loaded.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    plain = loaded.processor.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert plain
    assert embedder.describe(["red.png"], []) == plain


def _load(pictures, name):
    from vwlmm.benchmarks import Question

    return pictures.load(Question("1", (), (name,)))[0]


class Pair(torch.nn.Module):
    """As `DualEncoderModel` looks from outside."""

    device, dtype = torch.device("cpu"), torch.float32
    vision_projection = None
    config = SimpleNamespace(local_vision_weight=1.0)

    def __init__(self):
        super().__init__()
        self.local_vision_projection = torch.nn.Linear(3, 4)
        self.words = torch.nn.Embedding(400, 4)

    def vision_tokens(self, pixels):
        patches = torch.nn.functional.avg_pool2d(pixels, 14).flatten(2).transpose(1, 2)  # [images, 4, 3]
        return torch.cat([patches.mean(1, keepdim=True), patches], 1)

    def encode_image(self, pixels):
        return self.local_vision_projection(self.vision_tokens(pixels)[:, 1:]).mean(1)

    def encode_text(self, ids, mask):
        return (self.words(ids) * mask.unsqueeze(-1)).sum(1)


def test_a_dual_encoder_is_compared_in_its_own_space(loaded, opened):
    size = {"height": 28, "width": 28}
    processor = SimpleNamespace(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size), tokenizer=loaded.processor.tokenizer
    )
    embedder = make_embedder(Pair(), processor, opened, has_words=False)
    assert isinstance(embedder, DualEncoderEmbedder)
    assert isinstance(embedder, PatchEmbedder)
    images, texts = embedder.embed_images(IMAGES), embedder.embed_texts(["red", "green or blue"])
    assert images.shape == (3, 4)
    assert torch.allclose(torch.cat([images, texts]).norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(texts[:1], embedder.embed_texts(["red"]), atol=1e-6)  # padding changes nothing
    patches = embedder.embed_patches("red.png")
    assert patches.shape == (2, 2, 4)
    pooled = torch.nn.functional.normalize(patches.flatten(0, 1).mean(0), dim=0)
    assert torch.allclose(pooled, images[0], atol=1e-5)
