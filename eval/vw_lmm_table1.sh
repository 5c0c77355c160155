#!/usr/bin/env bash
# VW-LMM (arXiv 2403.07720), main table: VQAv2, GQA, VizWiz, ScienceQA, TextVQA, POPE, MMBench, MMBench-CN, MM-Vet.
#
#   eval/vw_lmm_table1.sh MODEL [DATA] [OUT] [more options of vwlmm eval]
#
# NUM_GPUS=8 eval/vw_lmm_table1.sh MODEL     answers on eight GPUs with torchrun; an interrupted run goes on where it was.
# docs/evaluation.md says which files DATA holds and what is left to upload.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ]; then sed -n '2,7p' "$0" >&2; exit 1; fi
model=$1; data=${2:-data}; out=${3:-results/vw_lmm_table1/$(basename "$1")}; shift $(( $# < 3 ? $# : 3 ))
source eval/launch.sh
evaluate "$model" --suite eval/suites/vw_lmm_table1.yaml --data "$data" --out "$out" "$@"
