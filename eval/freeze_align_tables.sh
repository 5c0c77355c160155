#!/usr/bin/env bash
# freeze-align (arXiv 2409.19425): image-text retrieval (COCO, Flickr30k), zero-shot classification, segmentation.
#
#   eval/freeze_align_tables.sh MODEL [DATA] [OUT] [more options of vwlmm eval]
#
# NUM_GPUS=8 eval/freeze_align_tables.sh MODEL     embeds on eight GPUs with torchrun where questions are independent.
# docs/evaluation.md says which files DATA holds.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ]; then sed -n '2,7p' "$0" >&2; exit 1; fi
model=$1; data=${2:-data}; out=${3:-results/freeze_align_tables/$(basename "$1")}; shift $(( $# < 3 ? $# : 3 ))
source eval/launch.sh
evaluate "$model" --suite eval/suites/freeze_align_tables.yaml --data "$data" --out "$out" "$@"
