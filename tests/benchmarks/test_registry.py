"""What holds for every benchmark: its name, its options, what it costs to import."""

import subprocess
import sys

import pytest

from vwlmm.benchmarks import BENCHMARKS, get_benchmark

QUESTION_ANSWERING = "gqa", "mmbench", "mmbench-cn", "mmvet", "pope", "scienceqa", "textvqa", "vizwiz", "vqav2"
# LLaVA-1.5-7B, VW-LMM Vicuna-7B, VW-LMM Mistral-7B: section 3.1 of the evaluation notes, VW-LMM's table 1.
PUBLISHED = {
    "vqav2": (78.5, 78.9, 80.8),
    "gqa": (62.0, 62.7, 65.4),
    "vizwiz": (50.0, 48.3, 58.5),
    "scienceqa": (66.8, 68.1, 75.9),
    "textvqa": (58.2, 57.6, 63.1),
    "pope": (85.9, 85.9, 87.0),
    "mmbench": (64.3, 65.9, 80.6),
    "mmbench-cn": (58.3, 59.8, 79.0),
    "mmvet": (30.5, 31.3, 44.0),
}


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_benchmark_is_found_under_its_own_name(name):
    benchmark = get_benchmark(name)
    assert benchmark.name == name
    assert benchmark.title
    with pytest.raises(ValueError, match="no option 'colour'"):
        get_benchmark(name, colour="red")


@pytest.mark.parametrize("name", QUESTION_ANSWERING)
def test_the_papers_figures_stand_beside_ours(name):
    assert tuple(get_benchmark(name).published.values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", QUESTION_ANSWERING)
def test_data_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name}: .* has no "):
        get_benchmark(name).files(tmp_path)


def test_scoring_imports_neither_torch_nor_transformers():
    modules = sorted({BENCHMARKS[name][0] for name in QUESTION_ANSWERING} | {"vwlmm.benchmarks.answers", "vwlmm.cli"})
    code = (
        f"import sys, {', '.join(modules)}; print([n for n in ('torch', 'transformers', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
