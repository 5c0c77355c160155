"""The functions that `_vwlmm.yaml` names: lmms-eval looks for them beside the YAML, by path and not as a package."""

from vwlmm.integrations.lmms_eval.questions import (
    aggregate,
    doc_to_messages,
    doc_to_text,
    doc_to_visual,
    process_results,
)

__all__ = ["aggregate", "doc_to_messages", "doc_to_text", "doc_to_visual", "process_results"]
