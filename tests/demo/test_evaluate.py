"""Answering questions: what the model is shown, that batching does not matter, and what comes back."""

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vwlmm.data.rows import read_rows
from vwlmm.demo.evaluate import accuracy, answer_questions, other_pictures

SPOKEN = "<pad> </s> <image> user assistant what is the shape there a red blue circle teal yes no ?"
WORDS = SPOKEN.split()
TEMPLATE = (
    "{% for m in messages %}user {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
QUESTIONS = [("what is the shape ?", "circle"), ("is there a red circle ?", "no"), ("what ?", "teal")]


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    vocab = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    vocab.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocab, pad_token="<pad>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    square = {"height": 8, "width": 8}
    image_processor = CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False)
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=1.0,  # answers that depend on what is asked, not one word for everything
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=2, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i, colour in enumerate(["red", "blue", "teal", "yellow"]):
        Image.new("RGB", (10, 6), colour).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def rows() -> list[dict]:
    return [
        {
            "id": f"{picture}-{i}",
            "image": f"{picture}.png",
            "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
        }
        for picture in range(4)
        for i, (question, answer) in enumerate(QUESTIONS)
    ]


class Watcher:
    """A processor that keeps the pictures and prompts it was given, and the last ids it made."""

    def __init__(self, processor: LlavaProcessor) -> None:
        self.processor, self.pictures, self.prompts = processor, [], []

    def __getattr__(self, name: str):
        return getattr(self.processor, name)

    def __call__(self, *, images: list, text: list, **others):
        self.pictures += images
        self.prompts += text
        inputs = self.processor(images=images, text=text, **others)
        self.input_ids = inputs["input_ids"]
        return inputs


def ask(model, processor, rows, images, **options) -> list[dict]:
    return answer_questions(model, processor, rows, images=images, **({"batch_size": 5} | options))


def test_answers_come_in_the_order_of_the_rows_with_what_was_asked(model, processor, rows, images):
    answers = ask(model, processor, rows, images)
    assert [(a["id"], a["image"]) for a in answers] == [(r["id"], r["image"]) for r in rows]
    assert answers[1]["question"] == "is there a red circle ?"
    assert (answers[0]["expected"], answers[0]["kind"]) == ("circle", "shape")
    assert (answers[1]["expected"], answers[1]["kind"]) == ("no", "yes/no")
    assert accuracy(answers)["overall"]["count"] == len(rows)


def test_an_answer_is_what_the_model_generates_for_that_row_alone(model, processor, rows, images):
    for row, answer in zip(rows, ask(model, processor, rows, images, max_new_tokens=4), strict=True):
        text = row["conversations"][0]["value"].removeprefix("<image>\n")
        picture = Image.open(images / row["image"]).convert("RGB")
        inputs = processor(text=f"user <image> {text} assistant", images=picture, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer["answer"] == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("text", ["<image>\nis there a red circle ?", "what ?\n<image>", "what <image> is there ?"])
def test_the_prompt_is_character_for_character_what_the_row_trains_on(model, processor, rows, images, text):
    rows[0]["conversations"][0]["value"] = text
    (images / "rows.json").write_text(json.dumps(rows))
    trained = next(read_rows(images / "rows.json")).messages[:1]  # as the training reads the row, without its answer
    expected = processor.apply_chat_template(trained, add_generation_prompt=True)
    watcher = Watcher(processor)
    ask(model, watcher, rows[:1], images)
    assert watcher.prompts == [expected]
    assert text.replace("<image>", "<image> ") in expected


@pytest.mark.parametrize("template", [TEMPLATE, "<s> " + TEMPLATE])
def test_the_first_token_is_read_once_whether_the_template_or_the_tokenizer_writes_it(
    model, processor, rows, images, template
):
    processor = copy.deepcopy(processor)
    processor.tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = processor.tokenizer.bos_token_id
    writer = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    processor.tokenizer.backend_tokenizer.post_processor = writer
    processor.chat_template = template
    watcher = Watcher(processor)
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    ask(wider, watcher, rows[:3], images)
    assert (watcher.input_ids == bos).sum(1).tolist() == [1, 1, 1]


def test_a_question_without_its_image_is_refused(model, processor, rows, images):
    turns = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "teal"}]
    with pytest.raises(ValueError, match="'7' should hold <image> once"):
        ask(model, processor, [{"id": "7", "image": "0.png", "conversations": turns}], images)


def test_the_batch_size_does_not_change_an_answer(model, processor, rows, images):
    one, five, all_at_once = (ask(model, processor, rows, images, batch_size=n) for n in (1, 5, len(rows)))
    assert one == five == all_at_once
    assert len({answer["answer"] for answer in one}) > 1  # else the comparison says nothing


def test_real_shows_each_row_its_own_picture(model, processor, rows, images):
    watcher = Watcher(processor)
    ask(model, watcher, rows, images, batch_size=len(rows))
    shown = {picture.getpixel((0, 0)) for picture in watcher.pictures}
    assert shown == {(255, 0, 0), (0, 0, 255), (0, 128, 128), (255, 255, 0)}


def test_blank_shows_the_mean_colour_in_the_size_of_the_picture(model, processor, rows, images):
    watcher = Watcher(processor)
    answers = ask(model, watcher, rows, images, picture="blank")
    grey = tuple(round(255 * mean) for mean in processor.image_processor.image_mean)
    assert [picture.getpixel((3, 3)) for picture in watcher.pictures] == [grey] * len(rows)
    assert {picture.size for picture in watcher.pictures} == {(10, 6)}
    assert {answer["shown"] for answer in answers} == {None}


def test_on_blank_pictures_equal_questions_get_equal_answers(model, processor, rows, images):
    answers = ask(model, processor, rows, images, picture="blank")
    by_question = {answer["question"]: set() for answer in answers}
    for answer in answers:
        by_question[answer["question"]].add(answer["answer"])
    assert [len(given) for given in by_question.values()] == [1, 1, 1]


def test_shuffled_shows_every_row_another_image_and_scores_against_its_own_answer(model, processor, rows, images):
    answers = ask(model, processor, rows, images, picture="shuffled", seed=3)
    assert all(answer["shown"] != answer["image"] for answer in answers)
    assert [answer["expected"] for answer in answers] == [row["conversations"][1]["value"] for row in rows]


@pytest.mark.parametrize("seed", range(5))
def test_other_pictures_is_a_rearrangement_that_leaves_nothing_in_place(seed):
    images = ["a", "b", "a", "c", "b", "a", "d", "e"]
    others = other_pictures(images, seed)
    assert sorted(others) == sorted(images)
    assert all(image != other for image, other in zip(images, others, strict=True))
    assert others == other_pictures(images, seed)


def test_other_pictures_depend_on_the_seed():
    images = [str(i) for i in range(20)]
    assert other_pictures(images, 0) != other_pictures(images, 1)


def test_other_pictures_says_when_there_are_none():
    with pytest.raises(ValueError, match=r"2 of 3 rows show a\.png"):
        other_pictures(["a.png", "a.png", "b.png"], 0)


def test_the_model_is_left_in_the_mode_it_was_in(model, processor, rows, images):
    try:
        model.train()
        ask(model, processor, rows[:2], images)
        assert model.training
    finally:
        model.eval()


def test_autocast_answers_in_a_narrow_dtype_and_leaves_the_weights_alone(model, processor, rows, images):
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    try:
        ask(model, processor, rows[:2], images, autocast=torch.bfloat16)
    finally:
        hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert model.dtype == torch.float32


def test_a_missing_image_is_named_with_its_row(model, processor, rows, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Row '0-0' shows .*0\.png"):
        ask(model, processor, rows[:1], tmp_path / "elsewhere")


def test_an_unknown_kind_of_picture_is_refused(model, processor, rows, images):
    with pytest.raises(ValueError, match="real, blank, shuffled, got 'noise'"):
        ask(model, processor, rows, images, picture="noise")


def test_answers_can_be_written_as_json(model, processor, rows, images):
    answers = ask(model, processor, rows[:3], images)
    assert json.loads(json.dumps(answers)) == answers
