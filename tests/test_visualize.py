"""`vwlmm words`: the map names each patch in its place, and PNG, HTML and JSON show that map."""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaProcessor, PreTrainedTokenizerFast

from vwlmm.models import VisualWordLlavaConfig, VisualWordLlavaForConditionalGeneration
from vwlmm.visualize import add_arguments, draw_png, main, text_grid, visual_word_map, write_html, write_json
from vwlmm.visualize.word_map import VisualWordMap, patch_grid, readable_word

WORDS = ["sky", "roof", "tree", "door"]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, the words of WORDS with a leading space as one token each, and a few special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + " ".join(WORDS)] * 50, trainer)
    # As Llama's: a text starts with <s>, unless the caller says otherwise.
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[start])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)


def tiny_model() -> tuple[VisualWordLlavaForConditionalGeneration, LlavaProcessor]:
    """A random model that reads 28 × 28 pixels as 2 × 2 patches, and its processor."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer) + 4,  # padded, as many published tables are
        max_position_embeddings=512,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = VisualWordLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return VisualWordLlavaForConditionalGeneration(config).eval(), processor


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """A wide photo-like picture: a bright and a dark half, with noise."""
    pixels = np.random.default_rng(0).integers(0, 40, (60, 90, 3))
    pixels[:30] += [60, 120, 200]
    path = tmp_path_factory.mktemp("pictures") / "house & tree.png"
    Image.fromarray(pixels.astype("uint8")).save(path)
    return path


def word_ids(processor) -> list[int]:
    ids = [processor.tokenizer.convert_tokens_to_ids("Ġ" + word) for word in WORDS]
    assert None not in ids
    return ids


@pytest.fixture(scope="module")
def naming(picture):
    """A model whose VM head is certain of WORDS, one word a patch in reading order."""
    model, processor = tiny_model()
    pixels = processor.image_processor(Image.open(picture), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels).pooler_output[0]  # [patches, hidden]
        model.vm_head.weight.zero_()
        # Rows that give the named patch a score of 60 and the other patches 0.
        model.vm_head.weight[word_ids(processor)] = torch.linalg.lstsq(features, 60 * torch.eye(4)).solution.T
    return model, processor


def by_hand(**changes) -> VisualWordMap:
    made = VisualWordMap(
        image=Path("cat.png"),
        grid=(1, 2),
        tokens=[[["red", "the"], ["␣", "⏎"]]],
        ids=[[[5, 6], [7, 8]]],
        probabilities=[[[0.75, 0.125], [0.5, 0.25]]],
        entropy=[[0.5, 1.5]],
        vocab_size=100,
        centred=False,
        picture=Image.new("RGB", (28, 14), (200, 220, 240)),
    )
    return dataclasses.replace(made, **changes)


def test_each_patch_is_named_with_the_word_its_vm_head_is_certain_of(naming, picture):
    word_map = visual_word_map(*naming, picture)
    assert word_map.grid == (2, 2)
    assert [[patch[0] for patch in row] for row in word_map.tokens] == [["sky", "roof"], ["tree", "door"]]
    assert [patch[0] for row in word_map.ids for patch in row] == word_ids(naming[1])
    assert min(patch[0] for row in word_map.probabilities for patch in row) > 0.999
    assert word_map.num_distinct_words == 4
    assert word_map.mean_entropy < 0.01


def test_probabilities_and_entropy_are_those_of_the_softmax_of_the_vm_head(tiny, picture):
    model, processor = tiny
    vocab = model.config.text_config.vocab_size
    word_map = visual_word_map(model, processor, picture, top_k=vocab)
    pixels = processor.image_processor(Image.open(picture), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        log_q = model.vm_head(model.get_image_features(pixel_values=pixels).pooler_output[0]).log_softmax(-1)
    ids = torch.tensor(word_map.ids).view(4, vocab)
    torch.testing.assert_close(torch.tensor(word_map.probabilities).view(4, vocab), log_q.exp().gather(1, ids))
    torch.testing.assert_close(torch.tensor(word_map.probabilities).sum(-1), torch.ones(2, 2))
    torch.testing.assert_close(torch.tensor(word_map.entropy).view(4), -(log_q.exp() * log_q).sum(-1))
    assert 0 < word_map.mean_entropy < math.log(vocab)


def test_a_head_that_knows_nothing_has_the_entropy_of_the_vocabulary(tiny, picture):
    word_map = visual_word_map(*tiny, picture, scores=lambda features: torch.zeros(len(features), 50))
    assert word_map.mean_entropy == pytest.approx(math.log(50))
    assert word_map.vocab_size == 50


def test_centring_takes_away_the_word_that_all_patches_share(tiny, picture):
    def scores(features):
        made = torch.zeros(4, 300)
        made[:, 270] = 9.0  # everywhere
        made[torch.arange(4), 280 + torch.arange(4)] = 3.0  # patch by patch
        return made

    plain = visual_word_map(*tiny, picture, scores=scores)
    centred = visual_word_map(*tiny, picture, scores=scores, center=True)
    assert [patch[0] for row in plain.ids for patch in row] == [270] * 4
    assert [patch[0] for row in centred.ids for patch in row] == [280, 281, 282, 283]


def test_the_picture_is_what_the_model_saw_resized_and_cropped(tiny, picture):
    seen = np.asarray(visual_word_map(*tiny, picture).picture, dtype=int)
    file = Image.open(picture).resize((42, 28), Image.Resampling.BICUBIC).crop((7, 0, 35, 28))
    assert seen.shape == (28, 28, 3)
    assert np.abs(seen - np.asarray(file, dtype=int)).max() <= 2


@pytest.mark.parametrize(
    ("num_features", "size", "patch", "grid", "area"),
    [
        (576, (336, 336), 14, (24, 24), (336, 336)),
        (577, (336, 336), 14, (24, 24), (336, 336)),  # a class token first
        (8, (30, 60), 14, (2, 4), (28, 56)),  # the tower leaves two rows and four columns of pixels out
        (49, (224, 224), None, (7, 7), (224, 224)),
        (32, (224, 448), None, (4, 8), (224, 448)),
        (50, (224, 224), None, (7, 7), (224, 224)),
    ],
)
def test_the_grid_follows_the_proportions_of_the_pixels(num_features, size, patch, grid, area):
    assert patch_grid(num_features, size, patch) == (grid, area)


def test_a_transparent_picture_is_seen_on_white_as_in_training(tiny, tmp_path):
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert visual_word_map(*tiny, tmp_path / "clear.png").picture.getextrema() == ((255, 255),) * 3


def test_features_that_form_no_grid_are_an_error():
    with pytest.raises(ValueError, match=r"grid over a picture of 224 × 224 pixels, got 23"):
        patch_grid(23, (224, 224))


def test_tokens_read_as_words_blanks_and_line_breaks():
    tokenizer = tiny_tokenizer()
    shown = {
        text: readable_word(tokenizer, tokenizer.convert_tokens_to_ids(text)) for text in ("Ġroof", "Ġ", "Ċ", "</s>")
    }
    assert shown == {"Ġroof": "roof", "Ġ": "␣", "Ċ": "⏎", "</s>": "</s>"}
    assert readable_word(tokenizer, tokenizer.convert_tokens_to_ids("Ã")) == "Ã"  # half a letter: the tokenizer's name
    assert readable_word(tokenizer, len(tokenizer) + 2) == f"#{len(tokenizer) + 2}"


def test_png_shows_the_picture_enlarged_with_a_label_in_every_cell(tmp_path):
    draw_png(by_hand(), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        drawn = np.asarray(image.convert("RGB"), dtype=int)
    assert drawn.shape == (320 + 32, 640, 3)  # cells of 320 pixels and the caption
    for left in (0, 320):
        cell = drawn[:320, left + 2 : left + 318]
        assert (cell[:160] == [200, 220, 240]).all()  # the picture above the label
        assert (cell[220:].min(axis=-1) < 60).any()  # the label's plate and outline
        assert (cell[220:].min(axis=-1) > 250).any()  # its letters
    # The bar is as long as the word is probable.
    is_bar = (drawn[:320] == [255, 196, 61]).all(axis=-1)
    assert is_bar[:, :320].sum() / is_bar[:, 320:].sum() == pytest.approx(0.75 / 0.5, rel=0.05)


def test_png_of_the_same_map_is_the_same_bytes(tmp_path):
    draw_png(by_hand(), tmp_path / "a.png")
    draw_png(by_hand(), tmp_path / "b.png")
    draw_png(by_hand(tokens=[[["blue", "the"], ["␣", "⏎"]]]), tmp_path / "c.png")
    same, again, other = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert same == again != other


def test_png_writes_letters_that_the_font_lacks_as_code_points(tmp_path):
    draw_png(by_hand(tokens=[[["中"], ["a"]]]), tmp_path / "a.png")
    draw_png(by_hand(tokens=[[["U+4E2D"], ["a"]]]), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_html_holds_every_picture_and_every_top_word_and_needs_no_other_file(naming, picture, tmp_path):
    word_map = visual_word_map(*naming, picture, top_k=3)
    write_html([word_map, by_hand(tokens=[[["<b>&", "the"], ["␣", "⏎"]]])], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('<bdi class="word">') == 4 + 2
    assert all(f'<bdi class="word">{word}</bdi>' in page for word in WORDS)
    assert page.count("100.0%</span>") == 4
    assert "house &amp; tree.png" in page
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert page.count("data:image/png;base64,") == 2
    assert not any(outside in page for outside in ("http", "<script", "src=", "@import"))


def test_json_holds_grid_tokens_probabilities_and_entropy(naming, picture, tmp_path):
    word_map = visual_word_map(*naming, picture, top_k=2)
    write_json([word_map], tmp_path / "words.json")
    (image,) = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))["images"]
    assert image["image"] == str(picture)
    assert image["grid"] == [2, 2]
    assert image["tokens"][1][0][0] == "tree"
    assert image["ids"] == word_map.ids
    assert image["probabilities"] == word_map.probabilities
    assert image["entropy"] == word_map.entropy


def test_text_grid_has_aligned_columns_and_cuts_to_the_width():
    word_map = by_hand(grid=(2, 2), tokens=[[["a"], ["extraordinary"]], [["中文"], ["b"]]])
    assert text_grid(word_map) == "a             extraordinary\n中文          b"
    assert text_grid(word_map, max_width=13) == "a      extra…\n中文   b"


def test_a_model_without_a_vm_head_is_an_error(tiny, picture):
    model, processor = tiny_model()
    del model.vm_head
    with pytest.raises(ValueError, match="need a model with a VM head"):
        visual_word_map(model, processor, picture)


@pytest.mark.parametrize("top_k", [0, 10_000])
def test_top_k_beyond_the_vocabulary_is_an_error(tiny, picture, top_k):
    with pytest.raises(ValueError, match=f"got {top_k}"):
        visual_word_map(*tiny, picture, top_k=top_k)


def test_scores_that_are_not_numbers_are_an_error(tiny, picture):
    with pytest.raises(ValueError, match="float32"):
        visual_word_map(*tiny, picture, scores=lambda features: torch.full((4, 9), float("nan")))


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(naming, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    for part in naming:
        part.save_pretrained(path)
    return path


def test_the_command_writes_each_format_and_says_so(folder, picture, tmp_path, capsys):
    assert main(parse(folder, picture, "--out", tmp_path / "new" / "words.HTML", "--top-k", 3)) == 0
    assert main(parse(folder, picture, "--out", tmp_path / "words.json")) == 0
    assert main(parse(folder, picture, picture, "--out", tmp_path / "words.png")) == 0
    assert "roof" in (tmp_path / "new" / "words.HTML").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))["images"][0]["tokens"][0][1][0] == "roof"
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["words_1.png", "words_2.png"]
    told = capsys.readouterr().out
    assert "house & tree.png: 2 × 2 patches, mean entropy 0.00 of 5.6" in told
    assert f"wrote {tmp_path / 'words_2.png'}" in told


def test_what_cannot_work_is_told_before_the_model_is_read(picture, tmp_path):
    with pytest.raises(ValueError, match=r"\.png, \.html or \.json file, got .*words\.gif"):
        main(parse("no/such/model", picture, "--out", tmp_path / "words.gif"))
    with pytest.raises(FileNotFoundError, match=r"Expected a picture file, found none at nothing\.jpg"):
        main(parse("no/such/model", "nothing.jpg", "--out", tmp_path / "words.png"))
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"a file that is not an image \(.*note\.txt\)"):
        main(parse("no/such/model", tmp_path / "note.txt", "--out", tmp_path / "words.png"))
    with pytest.raises(FileNotFoundError, match=r"found none at nothing\.ttf"):
        draw_png(by_hand(), tmp_path / "words.png", font="nothing.ttf")
    with pytest.raises(ValueError, match=r"note\.txt is not a font"):
        draw_png(by_hand(), tmp_path / "words.png", font=tmp_path / "note.txt")
