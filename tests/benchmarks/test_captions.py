"""COCO and NoCaps captions through `vwlmm score`: every collected case of the metrics and of the tokenizer."""

import json

import pytest
from scoring import cases, details_by_id, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.caption_metrics import bleu, cider_d, longest_common_subsequence, rouge_l
from vwlmm.benchmarks.java_tokenizer import has_java_tokenizer, java_tokens
from vwlmm.benchmarks.ptb_tokenizer import ptb_tokens

SMALL = cases("caption")["small"]
PTB = cases("ptb")["cases"]
OWN = ("--option", "tokenizer=own")


def coco_file(path, references):
    pictures = [{"id": int(i), "file_name": f"COCO_val2014_{int(i):012d}.jpg"} for i in references]
    captions = [(int(i), text) for i, texts in references.items() for text in texts]
    annotations = [{"image_id": i, "id": n, "caption": text} for n, (i, text) in enumerate(captions)]
    return write(path, {"info": {}, "images": pictures, "annotations": annotations})


def karpathy_file(path, references, split="test"):
    pictures = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{int(i):012d}.jpg",
            "imgid": n,
            "cocoid": int(i),
            "split": split,
            "sentences": [{"raw": text, "tokens": text.split()} for text in texts],
        }
        for n, (i, texts) in enumerate(references.items())
    ]
    other = {**pictures[0], "cocoid": 999, "split": "train"}
    return write(path, {"dataset": "coco", "images": [other, *pictures]})


def nocaps_file(path, references, domains):
    pictures = [
        {"id": int(i), "file_name": f"{i}.jpg", "domain": domain} for i, domain in zip(references, domains, strict=True)
    ]
    captions = [(int(i), text) for i, texts in references.items() for text in texts]
    annotations = [{"image_id": i, "id": n, "caption": text} for n, (i, text) in enumerate(captions)]
    return write(path, {"images": pictures, "annotations": annotations})


def result_file(path, candidates):
    return write(path, [{"image_id": int(i), "caption": text} for i, text in candidates.items()])


def answers_file(path, candidates):
    return write_lines(path, [{"question_id": i, "prompt": "A picture of ", "text": t} for i, t in candidates.items()])


def check_small(result):
    metrics, scores = result["metrics"], SMALL["scores"]
    assert metrics["CIDEr-D"] == pytest.approx(scores["CIDEr"], abs=1e-6)
    assert metrics["ROUGE-L"] == pytest.approx(scores["ROUGE_L"], abs=1e-6)
    assert [metrics[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(scores["BLEU"], abs=1e-6)
    details = details_by_id(result)
    for name in SMALL["candidates_raw"]:
        assert details[name]["CIDEr-D"] == pytest.approx(scores["CIDEr_per_image"][name], abs=1e-6)
        assert details[name]["ROUGE-L"] == pytest.approx(scores["ROUGE_L_per_image"][name], abs=1e-6)
        assert details[name]["tokens"] == SMALL["candidates_tokenised"][name][0]


@pytest.mark.parametrize("annotate", [coco_file, karpathy_file])
@pytest.mark.parametrize("answer", [result_file, answers_file])
def test_the_published_evaluators_figures_come_out_of_the_official_files(tmp_path, annotate, answer):
    annotations = annotate(tmp_path / "annotations.json", SMALL["references_raw"])
    check_small(
        run_score(tmp_path, "coco_captions", annotations, answer(tmp_path / "a", SMALL["candidates_raw"]), *OWN)
    )


def test_the_order_of_the_answers_does_not_matter(tmp_path):
    annotations = coco_file(tmp_path / "annotations.json", SMALL["references_raw"])
    turned = dict(reversed(SMALL["candidates_raw"].items()))
    check_small(run_score(tmp_path, "coco_captions", annotations, result_file(tmp_path / "a", turned), *OWN))


def test_references_are_split_as_the_published_tokenizer_splits_them():
    for name, texts in SMALL["references_raw"].items():
        assert [ptb_tokens(text) for text in texts] == SMALL["references_tokenised"][name]


def test_every_tokenizer_case_through_the_command(tmp_path):
    references = {str(i): ["a cat"] for i in range(len(PTB))}
    annotations = coco_file(tmp_path / "annotations.json", references)
    answers = answers_file(tmp_path / "a", {str(i): case["text"] for i, case in enumerate(PTB)})
    result = run_score(tmp_path, "coco_captions", annotations, answers, *OWN)
    assert [detail["tokens"] for detail in result["details"]] == [case["tokens"] for case in PTB]


# What the Stanford tokenizer gave for texts beyond the collected cases.
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Mr. Smith's dog, etc.", "mr. smith 's dog etc."),
        ("No. It is no. 5", "no it is no. 5"),
        ("Vitamin C. The rest of vitamin C. deficiency", "vitamin c the rest of vitamin c. deficiency"),
        ("d’autore, *.example.com, ½x", "d’autore *.example.com 1/2 x"),
        ("the U.S.-based Ph.D. at 5p.m.", "the u.s.-based ph.d. at 5p m."),
        ("rock'n'roll in the '90s, o'clock, ma'am", "rock 'n' roll in the '90s o'clock ma'am"),
        ("can’t “do” it – ‘now’…", "ca n't do it now"),
        ("1 1/2 cups, 1½", "1\u00a01/2 cups 1 1/2"),
        ("call (555) 555-1234 or a@b.com", "call -lrb-555-rrb-\u00a0555-1234 or a@b.com"),
        (":D :( :] <3 [sic] {x}", ":d :-lrb- :] < 3 -lsb- sic -rsb- -lcb- x -rcb-"),
        ("I'd've y'all 'tis wanna", "i 'd 've y' all 't is wan na"),
        ("www.x.com/a, IMG_1.jpg a.jpg #tag1 @me", "www.x.com / a img_1 jpg a.jpg #tag 1 @me"),
        ("$5.99/lb US$5 50¢ £3 #2", "$ 5.99 / lb us$ 5 50 cents # 3 # 2"),
        ("A&amp;B &quot;x&quot; <b>y</b>", "a&b x <b> y </b>"),
        ("a😀b ★", "a b ★"),
        ("-- ----- ... a--b", "----- a b"),
    ],
)
def test_words_are_split_as_the_stanford_tokenizer_splits_them(text, tokens):
    assert ptb_tokens(text) == tokens


@pytest.mark.skipif(not has_java_tokenizer(), reason="needs Java and pycocoevalcap")
def test_the_java_tokenizer_gives_the_collected_cases():
    assert java_tokens([case["text"] for case in PTB]) == [case["tokens"] for case in PTB]


def test_without_the_extra_the_java_tokenizer_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ImportError, match=r"pip install 'vwlmm\[caption\]'"):
        java_tokens(["a cat"])


def test_a_set_of_one_picture_has_cider_zero():
    assert cider_d(["a cat"], [["a cat"]]) == [0.0]


def test_empty_captions_score_nothing_and_do_not_fail():
    captions, references = ["", "a dog"], [["a cat"], ["a dog runs here now"]]
    assert cider_d(captions, references)[0] == 0.0
    assert rouge_l(captions, references)[0] == 0.0
    assert bleu(["", ""], references) == pytest.approx([0, 0, 0, 0])


def test_the_common_subsequence_is_the_longest_of_all():
    def naive(left, right):
        if not left or not right:
            return 0
        if left[0] == right[0]:
            return 1 + naive(left[1:], right[1:])
        return max(naive(left[1:], right), naive(left, right[1:]))

    for left, right in [("abcbdab", "bdcaba"), ("aaaa", "aa"), ("abc", "xyz"), ("", "abc"), ("aab", "azb")]:
        assert longest_common_subsequence(left, right) == naive(left, right)


def test_a_nocaps_domain_is_scored_as_a_set_by_itself(tmp_path):
    domains = ["in-domain", "in-domain", "in-domain", "out-domain", "out-domain", "out-domain"]
    annotations = nocaps_file(tmp_path / "nocaps.json", SMALL["references_raw"], domains)
    result = run_score(tmp_path, "nocaps", annotations, result_file(tmp_path / "a", SMALL["candidates_raw"]), *OWN)
    check_small(result)
    half = {i: SMALL["references_raw"][i] for i in ("4", "5", "6")}
    alone = run_score(
        tmp_path,
        "coco_captions",
        coco_file(tmp_path / "half.json", half),
        result_file(tmp_path / "b", {i: SMALL["candidates_raw"][i] for i in half}),
        *OWN,
    )
    for name in ("CIDEr-D", "BLEU-4", "ROUGE-L"):
        assert result["metrics"][f"{name}/out-domain"] == pytest.approx(alone["metrics"][name], abs=1e-9)
    assert result["metrics"]["CIDEr-D/out-domain"] != pytest.approx(
        sum(SMALL["scores"]["CIDEr_per_image"][i] for i in half) / 3, abs=1e-3
    )
    assert "near-domain" not in str(result["metrics"])


def test_the_prompt_is_vlaps_prefix_after_the_picture(tmp_path):
    annotations = karpathy_file(tmp_path / "dataset_coco.json", SMALL["references_raw"])
    benchmark = get_benchmark("coco_captions")
    question = benchmark.read(Files((annotations,)))[0]
    assert benchmark.completion
    assert question.prompt == "A picture of "
    assert question.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "A picture of "}]
    assert question.images == ("val2014/COCO_val2014_000000000001.jpg",)
    chat = get_benchmark("coco_captions", format="chat", prompt="Describe it.")
    assert chat.read(Files((annotations,)))[0].messages[0]["content"][1]["text"] == "\nDescribe it."
    assert not chat.completion


def test_the_submission_is_the_servers_list(tmp_path):
    annotations = coco_file(tmp_path / "annotations.json", SMALL["references_raw"])
    answers = answers_file(tmp_path / "a", {i: f" {text}\n" for i, text in SMALL["candidates_raw"].items()})
    run_score(tmp_path, "coco_captions", annotations, answers, *OWN, "--submission", tmp_path / "up")
    entries = json.loads((tmp_path / "up" / "coco_captions_results.json").read_text())
    assert entries[0] == {"image_id": 1, "caption": SMALL["candidates_raw"]["1"]}
    assert len(entries) == 6


def test_pictures_without_captions_are_answered_and_not_scored(capsys, tmp_path):
    annotations = write(tmp_path / "nocaps_test.json", {"images": [{"id": 0, "file_name": "0.jpg"}]})
    answers = result_file(tmp_path / "a", {"0": "a cat"})
    assert "not public" in refused(capsys, tmp_path, "nocaps", annotations, answers)


def spoil(document, where, value):
    *steps, last = where
    inner = document
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return document


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("annotations", 3, "image_id"), 77, "field annotations[3].image_id: expected the id of a picture"),
        (("annotations", 2, "caption"), None, "field annotations[2].caption: expected text, found null"),
        (("annotations", 2, "id"), 0, "field annotations[2].id: expected each caption once"),
        (("images", 1, "id"), 1, "field images[1].id: expected each picture once, found 1 again"),
        (("images", 0), {"id": 50, "file_name": "x.jpg"}, "expected the id of a picture of the same file"),
        (("images",), [], "found an empty list"),
    ],
)
def test_a_wrong_field_is_named(capsys, tmp_path, where, value, message):
    annotations = coco_file(tmp_path / "annotations.json", SMALL["references_raw"])
    write(annotations, spoil(json.loads(annotations.read_text()), where, value))
    answers = result_file(tmp_path / "a", SMALL["candidates_raw"])
    told = refused(capsys, tmp_path, "coco_captions", annotations, answers)
    assert str(annotations) in told
    assert message in told


def test_a_picture_without_reference_is_named(capsys, tmp_path):
    annotations = coco_file(tmp_path / "annotations.json", {**SMALL["references_raw"], "7": []})
    answers = result_file(tmp_path / "a", {**SMALL["candidates_raw"], "7": "a cat"})
    assert "captions of picture 7, found none" in refused(capsys, tmp_path, "coco_captions", annotations, answers)


def test_a_file_of_another_set_is_refused(capsys, tmp_path):
    answers = result_file(tmp_path / "a", SMALL["candidates_raw"])
    flickr = karpathy_file(tmp_path / "dataset_flickr30k.json", SMALL["references_raw"])
    write(flickr, {**json.loads(flickr.read_text()), "dataset": "flickr30k"})
    assert "expected 'coco', found 'flickr30k'" in refused(capsys, tmp_path, "coco_captions", flickr, answers)
    vqa = write(tmp_path / "vqa.json", {"questions": [{"question_id": 1}]})
    assert "Is it a file of another benchmark?" in refused(capsys, tmp_path, "coco_captions", vqa, answers)
    coco = coco_file(tmp_path / "coco.json", SMALL["references_raw"])
    assert "domain" in refused(capsys, tmp_path, "nocaps", coco, answers)


def test_unknown_twice_and_missing_captions_are_refused(capsys, tmp_path):
    annotations = coco_file(tmp_path / "annotations.json", SMALL["references_raw"])
    given = [{"image_id": int(i), "caption": text} for i, text in SMALL["candidates_raw"].items()]
    for entries, message in [
        ([*given, {"image_id": 9, "caption": "x"}], "found 9"),
        ([*given, given[0]], "found the same answer again"),
        ([*given, {**given[0], "caption": "x"}], "found another answer"),
        (given[:-1], "1 have none: 6"),
        ([*given[:-1], {"image_id": 6, "caption": 5}], "field [5].caption: expected text, found 5"),
        ([*given[:-1], {"image_id": 6}], "[5].text"),
    ]:
        told = refused(capsys, tmp_path, "coco_captions", annotations, write(tmp_path / "a", entries))
        assert message in told
    annotations.write_text(annotations.read_text()[:-40])
    assert "cut off" in refused(capsys, tmp_path, "coco_captions", annotations, write(tmp_path / "a", given))


def test_clip_scores_need_the_pictures(capsys, tmp_path):
    annotations = coco_file(tmp_path / "annotations.json", SMALL["references_raw"])
    answers = result_file(tmp_path / "a", SMALL["candidates_raw"])
    told = refused(capsys, tmp_path, "coco_captions", annotations, answers, *OWN, "--option", "clip=no/model")
    assert "--images" in told


def test_an_unknown_tokenizer_is_refused(capsys, tmp_path):
    annotations = coco_file(tmp_path / "annotations.json", SMALL["references_raw"])
    answers = result_file(tmp_path / "a", SMALL["candidates_raw"])
    told = refused(capsys, tmp_path, "coco_captions", annotations, answers, "--option", "tokenizer=nltk")
    assert "auto or java or own, found 'nltk'" in told
