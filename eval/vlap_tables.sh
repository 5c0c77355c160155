#!/usr/bin/env bash
# VLAP (arXiv 2404.09632): captioning (COCO, NoCaps), few-shot VQAv2 with 0, 1, 2 and 4 shots, Visual Dialog both ways.
#
#   eval/vlap_tables.sh MODEL [DATA] [OUT] [more options of vwlmm eval]
#
# NUM_GPUS=8 eval/vlap_tables.sh MODEL     answers on eight GPUs with torchrun; an interrupted run goes on where it was.
# docs/evaluation.md says which files DATA holds.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ]; then sed -n '2,7p' "$0" >&2; exit 1; fi
model=$1; data=${2:-data}; out=${3:-results/vlap_tables/$(basename "$1")}; shift $(( $# < 3 ? $# : 3 ))
source eval/launch.sh
evaluate "$model" --suite eval/suites/vlap_tables.yaml --data "$data" --out "$out" "$@"
