"""Scores a model on benchmarks: the same as `vwlmm eval`, for launchers that start a file.

python eval/evaluate.py MODEL --benchmark pope --data data --out results/pope
torchrun --standalone --nproc_per_node 8 eval/evaluate.py MODEL --suite eval/suites/vw_lmm_table1.yaml --out results/table1
deepspeed eval/evaluate.py MODEL --benchmark vqav2 --data data --out results/vqav2
"""

import sys

from vwlmm.cli import main

if __name__ == "__main__":
    # DeepSpeed's launcher adds --local_rank, which it also puts into the environment.
    sys.exit(main(["eval", *(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))]))
