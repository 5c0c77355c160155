"""`vwlmm eval` from the command line: what it asks, what it writes, and what it says to a mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy import Toy

from vwlmm.benchmarks import BENCHMARKS
from vwlmm.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def toy_benchmark(monkeypatch):
    """The toy under its name, as if it were one of ours."""
    monkeypatch.setitem(BENCHMARKS, "toy", ("toy", "Toy"))


@pytest.fixture
def ask(trained, toy_data, tmp_path, toy_benchmark, capsys):
    """Runs the command on the tiny model; returns exit code, what was printed, and what was said on stderr."""

    def ask(*arguments, model=trained, out=tmp_path / "out", data=toy_data):
        given = [*([str(model)] if model else []), *map(str, arguments)]
        given += ["--data", str(data)] if data else []
        given += ["--out", str(out)] if out else []
        code = main(["eval", *given])
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


def test_a_benchmark_is_asked_and_the_table_has_the_papers_figure_beside_ours(ask, tmp_path):
    code, out, _ = ask("--benchmark", "toy", "--batch-size", "4", "--dtype", "float32")
    assert code == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in out
    header, _, row = table.splitlines()[:3]
    assert "Paper-7B" in header
    assert row.startswith("| Toy | accuracy |")
    assert "| 50.0 |" in row
    assert (tmp_path / "out" / "toy" / "answers.jsonl").is_file()


def test_options_are_given_behind_the_name_and_have_their_own_folder(ask, tmp_path):
    assert ask("--benchmark", "toy", "toy:polite=true", "--limit", "2")[0] == 0
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "out/toy-polite=True/answers.jsonl").open()]
    assert all(prompt.endswith("Please!") for prompt in prompts)
    assert len((tmp_path / "out" / "table.md").read_text().split("| Toy")) == 3


def test_a_suite_asks_its_benchmarks_and_the_command_line_wins_over_it(ask, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text("batch_size: 4\nlimit: 3\nbenchmarks: [{name: toy, options: {polite: true}, max_new_tokens: 2}]\n")
    assert ask("--suite", suite, "--limit", "5")[0] == 0
    result = json.loads((tmp_path / "out/toy-polite=True/result.json").read_text())
    assert (result["settings"]["batch_size"], result["settings"]["max_new_tokens"]) == (4, 2)
    assert result["num_questions"] == 5


def test_a_benchmark_without_files_stops_the_suite_unless_it_may_be_left_out(ask, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"limit: 2\nbenchmarks: [toy, {{name: toy, options: {{polite: true}}, data: {tmp_path / 'none'}}}]\n"
    )
    code, _, err = ask("--suite", suite)
    assert code == 1
    assert "expected toy.json" in err
    code, out, _ = ask("--suite", suite, "--skip-missing")
    assert code == 0
    assert "left out: toy: expected toy.json" in out
    assert not (tmp_path / "out" / "toy-polite=True").exists()


def test_shards_by_hand_end_in_one_table(ask, tmp_path):
    code, out, err = ask("--benchmark", "toy", "--shard", "0/2")
    assert code == 0
    assert "Run the other shards" in err + out or "run the other shards" in out
    assert not (tmp_path / "out" / "table.md").exists()
    assert ask("--benchmark", "toy", "--shard", "1/2")[0] == 0
    assert (tmp_path / "out" / "table.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--benchmark", "tyo"], "no benchmark 'tyo'. Did you mean 'toy'?"),
        (["--benchmark", "toy:rude=1"], "toy: no option 'rude'; it has: polite"),
        (["--benchmark", "toy:polite"], "NAME:option=value"),
        (["--benchmark", "toy", "toy"], "asked twice"),
        ([], "Nothing to ask"),
        (["--benchmark", "toy", "--limit", "0"], "--limit is at least 1"),
        (["--benchmark", "toy", "--batch-size", "0"], "--batch-size is at least 1"),
        (["--benchmark", "toy", "--shard", "2/2"], "I from 0 to N − 1"),
        (["--benchmark", "toy", "--shard", "1"], "A shard is I/N"),
        (["--suite", "none.yaml"], "A suite was expected at none.yaml"),
    ],
)
def test_a_mistake_is_one_line(ask, arguments, said):
    code, _, err = ask(*arguments)
    assert code == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_part_of_the_call_is_one_line(ask, tmp_path, toy_data):
    assert "needs a MODEL and --out" in ask("--benchmark", "toy", out=None)[2]
    assert "needs a MODEL and --out" in ask("--benchmark", "toy", model=None)[2]
    assert "say where they are with --data" in ask("--benchmark", "toy", data=None)[2]
    assert "expected toy.json" in ask("--benchmark", "toy", data=tmp_path)[2]
    assert "A model folder was expected" in ask("--benchmark", "toy", model=tmp_path / "none")[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("benchmarks: []", "a list `benchmarks` that is not empty"),
        ("benchmarks: [toy", "not readable YAML"),
        ("benchmark: [toy]", "a list `benchmarks`"),
        ("benchmarks: [toy]\nbatchsize: 1", "unknown key 'batchsize'. Did you mean 'batch_size'?"),
        ("benchmarks: [{name: toy, option: {}}]", "unknown key 'option'. Did you mean 'options'?"),
        ("benchmarks: [tyo]", "no benchmark 'tyo'"),
    ],
)
def test_a_broken_suite_names_file_and_key(ask, tmp_path, content, said):
    suite = tmp_path / "suite.yaml"
    suite.write_text(content)
    err = ask("--suite", suite)[2]
    assert str(suite) in err
    assert said in err


@pytest.mark.parametrize("suite", sorted((ROOT / "eval" / "suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_in_the_tree_can_be_read(suite):
    from vwlmm.evaluation.settings import EvaluationConfig
    from vwlmm.evaluation.suite import read_suite

    read = read_suite(suite)
    for entry in read.entries:
        EvaluationConfig(**{**read.settings, **entry.settings})


def test_the_list_shows_every_benchmark(capsys):
    assert main(["eval", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in BENCHMARKS)


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_run_of_one(trained, tmp_path):
    """Launched as torchrun launches: rank, world size and rendezvous in the environment."""
    script = (
        "import sys; sys.path[:0] = ['tests/evaluation']\n"
        "from vwlmm.benchmarks import BENCHMARKS; BENCHMARKS['toy'] = ('toy', 'Toy')\n"
        "from vwlmm.cli import main; raise SystemExit(main(['eval', *sys.argv[1:]]))"
    )
    from toy import write_toy

    data = write_toy(tmp_path / "data")
    command = [
        sys.executable,
        "-c",
        script,
        str(trained),
        "--benchmark",
        "toy",
        "--data",
        str(data),
        "--dtype",
        "float32",
    ]
    one = subprocess.run([*command, "--out", str(tmp_path / "one")], cwd=ROOT, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port(), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / "two")],
            cwd=ROOT,
            env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "| Toy |" in said[0][0]
    assert said[1][0] == ""
    for name in ("answers.jsonl", "submission.json", "details.jsonl"):
        assert (tmp_path / "two/toy" / name).read_bytes() == (tmp_path / "one/toy" / name).read_bytes()


def _free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_the_toy_is_what_the_tests_say_it_is(toy, toy_data):
    questions = toy.read(toy.files(toy_data))
    assert isinstance(toy, Toy)
    assert {len(question.images) for question in questions} == {0, 1, 2}
