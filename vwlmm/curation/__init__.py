"""Curation: from millions of pairs, those whose captions cover a list of concepts evenly.

`vwlmm data curate SHARD… --model MODEL --concepts FILE --out DIR`. Paper: freeze-align, arXiv 2409.19425.
"""

from vwlmm.curation.choose import Choice, choose
from vwlmm.curation.command import add_arguments, main
from vwlmm.curation.curate import CurateConfig, curate
from vwlmm.curation.prototypes import Prototypes, concept_prototypes, few_shot
from vwlmm.curation.report import Report
from vwlmm.curation.scale import Scale
from vwlmm.curation.shards import BrokenShard, Fields, find_shards, read_pairs
from vwlmm.curation.store import ScoreStore

__all__ = [
    "BrokenShard",
    "Choice",
    "CurateConfig",
    "Fields",
    "Prototypes",
    "Report",
    "Scale",
    "ScoreStore",
    "add_arguments",
    "choose",
    "concept_prototypes",
    "curate",
    "few_shot",
    "find_shards",
    "main",
    "read_pairs",
]
