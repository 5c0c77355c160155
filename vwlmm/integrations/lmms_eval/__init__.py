"""vwlmm in lmms-eval: our models for its tasks, and our benchmarks as its tasks, with our prompts and scorers.

python -m vwlmm.integrations.lmms_eval --benchmark pope --data data --out tasks        # writes the tasks' files
lmms-eval --model vwlmm --model_args pretrained=MODEL --tasks vwlmm_pope --include_path tasks
"""

from typing import Any


def manifest() -> Any:
    """What the entry point group `lmms_eval.models` gives lmms-eval: where the model class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vwlmm", chat_class_path="vwlmm.integrations.lmms_eval.adapter.VwlmmChat")
