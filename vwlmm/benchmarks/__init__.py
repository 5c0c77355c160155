"""Benchmarks by name; a module is imported when its benchmark is asked for."""

from difflib import get_close_matches
from importlib import import_module
from typing import Any

from .benchmark import Answer, Benchmark, Files, Question, Score

__all__ = ["BENCHMARKS", "Answer", "Benchmark", "Files", "Question", "Score", "get_benchmark"]

# Name → module and class.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "arithmetic": ("vwlmm.benchmarks.arithmetic", "Arithmetic"),
    "classification": ("vwlmm.benchmarks.classification", "Classification"),
    "coco_captions": ("vwlmm.benchmarks.coco_captions", "COCOCaptions"),
    "coco_retrieval": ("vwlmm.benchmarks.retrieval", "COCORetrieval"),
    "fewshot_vqav2": ("vwlmm.benchmarks.fewshot_vqav2", "FewShotVQAv2"),
    "flickr30k_retrieval": ("vwlmm.benchmarks.retrieval", "Flickr30kRetrieval"),
    "embedded_captions": ("vwlmm.benchmarks.embedded", "EmbeddedCaptions"),
    "embedded_pope": ("vwlmm.benchmarks.embedded", "EmbeddedPOPE"),
    "embedded_retrieval": ("vwlmm.benchmarks.embedded", "EmbeddedRetrieval"),
    "embedded_vqa": ("vwlmm.benchmarks.embedded", "EmbeddedVQA"),
    "gqa": ("vwlmm.benchmarks.gqa", "GQA"),
    "mmbench": ("vwlmm.benchmarks.mmbench", "MMBench"),
    "mmbench-cn": ("vwlmm.benchmarks.mmbench", "MMBenchCN"),
    "mmvet": ("vwlmm.benchmarks.mmvet", "MMVet"),
    "nocaps": ("vwlmm.benchmarks.nocaps", "NoCaps"),
    "pope": ("vwlmm.benchmarks.pope", "POPE"),
    "scienceqa": ("vwlmm.benchmarks.scienceqa", "ScienceQA"),
    "textvqa": ("vwlmm.benchmarks.textvqa", "TextVQA"),
    "visdial": ("vwlmm.benchmarks.visdial", "VisDial"),
    "visdial_retrieval": ("vwlmm.benchmarks.visdial_retrieval", "VisDialRetrieval"),
    "vizwiz": ("vwlmm.benchmarks.vizwiz", "VizWiz"),
    "voc_segmentation": ("vwlmm.benchmarks.voc_segmentation", "VOCSegmentation"),
    "vqav2": ("vwlmm.benchmarks.vqav2", "VQAv2"),
}


def get_benchmark(name: str, **options: Any) -> Benchmark:
    """The benchmark of that name; ValueError with the nearest known name otherwise."""
    if name not in BENCHMARKS:
        near = get_close_matches(name, BENCHMARKS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no benchmark {name!r}.{hint} Known: {', '.join(sorted(BENCHMARKS))}")
    module, kind = BENCHMARKS[name]
    return getattr(import_module(module), kind)(**options)
