"""Pictures and texts among the words: retrieval, nearest words, arithmetic, captions and k-shot answers of a tiny model."""

import json

import pytest
import torch
import torch.nn.functional as F

from vwlmm import load_model
from vwlmm.assembly import assemble
from vwlmm.cli import main
from vwlmm.data.images import load_image
from vwlmm.vlap import (
    WordSpace,
    answer_questions,
    caption_likelihoods,
    likelihood_retrieval,
    read_triples,
    retrieval_scores,
    solve,
    write_caption,
    write_captions,
)
from vwlmm.vlap.arithmetic import rank_of
from vwlmm.vlap.evaluate import caption_scores


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("vlap")
    model, processor = assemble(parts / "tower", parts / "llm", chat_template="caption", projector_type="linear")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(folder)


@pytest.fixture
def files(pictures):
    return [pictures / f"{name}.png" for name in ("red", "green", "blue")]


def test_a_picture_is_the_mean_of_its_features_as_a_direction(loaded, files):
    space = WordSpace(*loaded)
    features = space.features(files)
    assert features.shape == (3, 4, 64)
    torch.testing.assert_close(space.images(files), F.normalize(features.mean(1), dim=-1))
    torch.testing.assert_close(space.features(files, batch_size=1), features)


@pytest.mark.parametrize("captions", ["contextual", "word_embeddings"])
def test_a_text_does_not_depend_on_its_neighbours(loaded, captions):
    space = WordSpace(*loaded, captions=captions)
    both = space.texts(["red", "A picture of a shape"])
    torch.testing.assert_close(both[0], space.texts(["red"])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="Text 1 is empty"):
        space.texts(["red", "  "])


def test_a_single_word_is_nearest_to_itself_raw_and_centred(loaded):
    tokenizer = loaded[1].tokenizer
    (red,) = tokenizer(" red", add_special_tokens=False)["input_ids"][-1:]
    for centred in (False, True):
        space = WordSpace(*loaded, centred=centred)
        direction = space.point(loaded[0].get_input_embeddings().weight[red].detach())
        assert space.nearest(direction[None], 3)[0][0][0] == tokenizer.decode([red]).strip().lower()
        assert rank_of(space, direction, [tokenizer.decode([red])]) == 1
        assert rank_of(space, direction, ["no such word"]) is None


def test_centring_makes_the_words_mean_no_direction_at_all(loaded):
    space = WordSpace(*loaded, centred=True)
    words = loaded[0].get_input_embeddings().weight.detach()[space.is_word]
    assert (words - space.mean).mean(0).abs().max() < 1e-6
    assert space.cosines(space.directions)[:, ~space.is_word].eq(-1).all()


def test_retrieval_counts_both_directions_and_equal_captions_as_right():
    images, texts = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    scores = retrieval_scores(images, texts, at=(1, 4))
    assert scores["image_to_text_r1"] == scores["text_to_image_r1"] == 0.5
    assert scores["image_to_text_r4"] == 1
    same = retrieval_scores(torch.eye(3)[[0, 0, 1]] + 0.1 * torch.eye(3), torch.eye(3)[[0, 0, 1]])
    assert same["image_to_text_r1"] == 1
    with pytest.raises(ValueError, match="as many images as texts"):
        retrieval_scores(images, texts[:2])


def test_arithmetic_of_a_picture_plus_and_minus_another_is_itself(loaded, files):
    space = WordSpace(*loaded)
    red, green = files[:2]
    torch.testing.assert_close(solve(space, [red, green], [green]), space.features([red])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(solve(space, [red, green]), space.features([red, green]).mean(0))
    with pytest.raises(ValueError, match="at least one to add"):
        solve(space, [], [red])


def test_a_caption_of_a_pictures_own_features_is_the_pictures_caption(loaded, files):
    model, processor = loaded
    captions = write_captions(model, processor, files, max_new_tokens=6, batch_size=2)
    space = WordSpace(model, processor)
    assert [write_caption(model, processor, f, max_new_tokens=6) for f in space.features(files)] == captions


def test_k_shot_answers_read_the_examples_pictures_and_end_at_the_line(loaded, files, monkeypatch):
    model, processor = loaded
    seen = []
    monkeypatch.setattr(
        model, "generate", lambda **inputs: seen.append(inputs) or inputs["input_ids"][:, -3:].repeat(1, 9)
    )
    shots = [(files[0], "What colour?", "red"), (files[1], "What colour?", "green")]
    answers = answer_questions(model, processor, [(files[2], "What colour?")], shots=shots)
    text = processor.tokenizer.decode(seen[0]["input_ids"][0])
    assert text.count("Question: What colour? Answer:") == 3
    assert text.endswith("Answer:")
    assert text.count("<image>") == 3 * 4
    assert len(seen[0]["pixel_values"]) == 3
    assert len(answers) == 1
    monkeypatch.undo()
    assert all("\n" not in answer for answer in answer_questions(model, processor, [(f, "What?") for f in files]))
    with pytest.raises(ValueError, match="has a question and an answer"):
        answer_questions(model, processor, [(files[2], "What?")], shots=[(files[0], "What?", " ")])


def test_caption_scores_by_hand():
    scores = caption_scores(["a red heart", "cat", ""], ["red heart", "cat", "dog"])
    assert scores == {"exact": 1 / 3, "word_f1": pytest.approx((2 * 2 / 5 + 1 + 0) / 3)}


def test_arithmetic_on_the_command_line_scores_a_file_of_sums(folder, files, tmp_path, capsys):
    sums = tmp_path / "sums.jsonl"
    row = {"plus": ["red.png", "blue.png"], "minus": ["green.png"], "expected": ["red"], "note": "red − green + blue"}
    sums.write_text(json.dumps(row) + "\n\n")
    out = tmp_path / "out.json"
    arguments = ["arithmetic", str(folder), "--triples", str(sums), "--images", str(files[0].parent), "--out", str(out)]
    assert main(arguments) == 0
    assert "of 1 sums have an expected word among the 10 nearest" in capsys.readouterr().out
    (result,) = json.loads(out.read_text())
    assert len(result["words"]) == 10
    assert result["hit"] == (result["rank"] is not None and result["rank"] <= 10)
    assert main(["arithmetic", str(folder), "--plus", str(files[0]), str(files[1]), "--minus", str(files[2])]) == 0
    assert "caption:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: expected plus, minus and expected in JSON"),
        ('{"plus": ["a.png"], "minus": []}', "line 1: expected plus, minus and expected"),
        ('{"plus": [], "minus": [], "expected": ["x"]}', "line 1: plus is a list of at least one text"),
        ('{"plus": ["none.png"], "minus": [], "expected": ["x"]}', "line 1: no picture at"),
        ("", "holds no sums"),
    ],
)
def test_a_bad_line_of_sums_is_named(tmp_path, line, message):
    (tmp_path / "sums.jsonl").write_text(line)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_triples(tmp_path / "sums.jsonl")


def test_arithmetic_without_pictures_or_with_a_missing_one_is_one_line(folder, tmp_path, capsys):
    assert main(["arithmetic", str(folder)]) == 1
    assert "Give either pictures" in capsys.readouterr().err
    assert main(["arithmetic", str(folder), "--plus", str(tmp_path / "none.png")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_words_by_cosine_need_no_vm_head(folder, files, tmp_path, capsys):
    out = tmp_path / "words.json"
    for kind in ("raw", "centred"):
        assert main(["words", str(folder), str(files[0]), "--out", str(out), "--cosine", kind]) == 0
        (image,) = json.loads(out.read_text())["images"]
        assert image["grid"] == [2, 2]


def test_a_captions_likelihood_is_that_of_the_plain_forward_for_every_picture(loaded, files):
    model, processor = loaded
    captions = ["red", "A picture of a shape"]
    table = caption_likelihoods(model, processor, files, captions)
    assert table.shape == (3, 2)
    tokenizer = processor.tokenizer
    for row, file in enumerate(files):
        for column, caption in enumerate(captions):
            text = f"{tokenizer.bos_token}<image>A picture of {caption}{tokenizer.eos_token}"
            inputs = processor(images=load_image(file), text=text, add_special_tokens=False, return_tensors="pt")
            count = len(tokenizer(f" {caption}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"])
            log_p = model(**inputs).logits[0, -count - 1 : -1].log_softmax(-1)
            expected = log_p.gather(1, inputs["input_ids"][0, -count:, None]).mean()
            torch.testing.assert_close(table[row, column], expected.detach(), atol=1e-4, rtol=1e-4)


def test_likelihood_retrieval_takes_off_what_is_likely_after_any_picture():
    table = torch.tensor([[-1.0, -5.0, -9.0], [-2.0, -4.0, -9.0], [-2.0, -5.0, -8.0]])
    scores = likelihood_retrieval(table, ["a", "b", "c"], at=(1,))
    assert scores == {"image_to_text_r1": 1.0, "text_to_image_r1": 1.0}
    with pytest.raises(ValueError, match="a caption for each picture"):
        likelihood_retrieval(table, ["a", "b"])
