"""Few-shot VQAv2: the shots, the interleaved prompt, and the cut before VQAv2's rule."""

import pytest
from scoring import answer_line, details_by_id, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.fewshot_vqav2 import cut_answer


def part(folder, split, count, begin):
    """Questions and annotations of one split; the answer of question N is `answerN`."""
    numbers = range(begin, begin + count)
    questions = [{"image_id": n, "question": f"What is {n}?", "question_id": n * 10} for n in numbers]
    annotations = [
        {
            "question_id": n * 10,
            "image_id": n,
            "question_type": "what",
            "answer_type": "other",
            "multiple_choice_answer": f"answer{n}",
            "answers": [{"answer": f"answer{n}", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
        }
        for n in numbers
    ]
    return (
        write(folder / f"{split}_annotations.json", {"annotations": annotations}),
        write(folder / f"{split}_questions.json", {"data_subtype": split, "questions": questions}),
    )


@pytest.fixture
def official(tmp_path):
    val, train = part(tmp_path, "val2014", 6, 1), part(tmp_path, "train2014", 30, 100)
    return Files((val[0], train[0]), (val[1], train[1]))


def test_without_shots_the_prompt_is_the_template(official):
    question = get_benchmark("fewshot_vqav2").read(official)[0]
    assert question.prompt == "Question: What is 1? Answer:"
    assert question.images == ("val2014/COCO_val2014_000000000001.jpg",)


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_shots_are_answered_questions_of_the_training_set_with_their_pictures_between(official, shots):
    benchmark = get_benchmark("fewshot_vqav2", shots=shots)
    question = benchmark.read(official)[0]
    content = question.messages[0]["content"]
    assert [step["type"] for step in content] == ["image", "text"] * (shots + 1)
    assert question.images[-1] == "val2014/COCO_val2014_000000000001.jpg"
    assert content[-1]["text"] == "Question: What is 1? Answer:"
    assert len(set(question.images)) == shots + 1
    for image, step in zip(question.images[:-1], content[1::2], strict=False):
        number = int(image.removeprefix("train2014/COCO_train2014_").removesuffix(".jpg"))
        assert step["text"] == f"Question: What is {number}? Answer: answer{number}\n"
    assert benchmark.completion


def test_shots_depend_on_the_seed_and_the_question_alone(official):
    first, again = (get_benchmark("fewshot_vqav2", shots=2).read(official) for _ in range(2))
    other = get_benchmark("fewshot_vqav2", shots=2, seed=1).read(official)
    assert [q.messages for q in first] == [q.messages for q in again]
    assert [q.messages for q in first] != [q.messages for q in other]
    assert len({q.images[:2] for q in first}) > 1


def test_the_template_is_a_setting(official):
    question = get_benchmark("fewshot_vqav2", shots=1, template="Q: {question} A:").read(official)[0]
    assert question.messages[0]["content"][-1]["text"] == "Q: What is 1? A:"
    with pytest.raises(ValueError, match=r"a template with \{question\} in it"):
        get_benchmark("fewshot_vqav2", template="Question")
    with pytest.raises(ValueError, match="expected shots 0, 1, 2, 4, …, found -1"):
        get_benchmark("fewshot_vqav2", shots=-1)


@pytest.mark.parametrize(
    ("text", "cut"),
    [(" two dogs\nQuestion: x", "two dogs"), ("\n red. It", "red"), ("yes", "yes"), ("", ""), (".", "")],
)
def test_an_answer_ends_at_the_first_newline_or_full_stop(text, cut):
    assert cut_answer(text) == cut


def test_the_score_is_that_of_the_cut_answers(tmp_path, official):
    lines = [answer_line(n * 10, f" answer{n}\nQuestion: What") for n in range(1, 6)] + [answer_line(60, "wrong.")]
    result = run_score(tmp_path, "fewshot_vqav2", official.annotations[0], write_lines(tmp_path / "a.jsonl", lines))
    assert result["metrics"]["accuracy"] == pytest.approx(5 / 6)
    assert details_by_id(result)["10"]["written"] == " answer1\nQuestion: What"
    assert details_by_id(result)["10"]["text"] == "answer1"


def test_shots_without_the_train_files_are_refused(capsys, tmp_path, official):
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(10, "x")])
    told = refused(
        capsys,
        tmp_path,
        "fewshot_vqav2",
        official.annotations[0],
        answers,
        "--questions",
        official.questions[0],
        "--option",
        "shots=2",
    )
    assert "2 shots need the train files" in told


def test_the_files_are_found_by_their_official_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"v2_mscoco_train2014_annotations\.json"):
        get_benchmark("fewshot_vqav2", shots=2).files(tmp_path)
    for split in ("val2014", "train2014"):
        (tmp_path / split).mkdir()
        (tmp_path / f"v2_mscoco_{split}_annotations.json").touch()
        (tmp_path / f"v2_OpenEnded_mscoco_{split}_questions.json").touch()
    files = get_benchmark("fewshot_vqav2", shots=2).files(tmp_path)
    assert [path.name for path in files.annotations] == [
        "v2_mscoco_val2014_annotations.json",
        "v2_mscoco_train2014_annotations.json",
    ]
    assert files.questions[1].name == "v2_OpenEnded_mscoco_train2014_questions.json"
    assert files.images == tmp_path
