"""Trains one recipe: the same as `vwlmm train`, for launchers that start a file.

python train/train.py train/demo/1_align.yaml training.max_steps=10
torchrun --standalone --nproc_per_node 8 train/train.py train/visual_words/2_instruct.yaml
deepspeed train/train.py train/visual_words/2_instruct.yaml
accelerate launch train/train.py train/visual_words/2_instruct.yaml
"""

import sys

from vwlmm.cli import main

if __name__ == "__main__":
    # DeepSpeed's launcher adds --local_rank, which it also puts into the environment.
    sys.exit(main(["train", *(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))]))
