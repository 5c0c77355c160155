#!/usr/bin/env bash
# Starts one recipe on many GPUs: on this machine, on the machines of a hostfile, or as a SLURM job.
#
#   train/launch.sh train/visual_words/vicuna_7b/2_instruct.yaml                     every GPU of this machine
#   GPUS=4 train/launch.sh RECIPE training.max_steps=100                             four of them, one value changed
#   train/launch.sh RECIPE --check                                                   a few real steps first: does it fit, how long
#   HOSTFILE=hosts.txt train/launch.sh RECIPE                                        several machines, through DeepSpeed and ssh
#   sbatch --nodes 4 --gpus-per-node 8 --ntasks-per-node 8 train/launch.sh RECIPE    several machines, under SLURM
#
# Without a GPU, GPUS=2 starts two CPU processes. See docs/many_gpus.md.

# For SLURM; sbatch reads these lines, and its command line wins over them. One task is one GPU.
#SBATCH --job-name=vwlmm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
# Ten minutes before the time is over every rank gets SIGUSR1: the run saves a checkpoint and ends.
#SBATCH --signal=USR1@600

set -euo pipefail

usage() { sed -n '2,11p' "$0" | sed 's/^# \{0,1\}//'; }
case "${1:-}" in "" | -h | --help) usage; exit 1 ;; esac
[ -f "$1" ] || { echo "launch.sh: a recipe was expected, $1 is no file" >&2; exit 1; }

# sbatch copies this script elsewhere, and starts it in the folder it was called from.
ENTRY=train/train.py
[ -f "$ENTRY" ] || cd "$(dirname "$0")/.."
[ -f "$ENTRY" ] || { echo "launch.sh: start it in the folder that holds $ENTRY" >&2; exit 1; }

count_gpus() { python -c "import torch; print(torch.cuda.device_count() or 1)"; }

if [ -n "${SLURM_JOB_ID:-}" ]; then
    # Under SLURM: srun is the launcher, so that the ranks themselves get its signals; they meet at the first machine.
    machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export MASTER_ADDR=${machines%%$'\n'*} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) WORLD_SIZE=$SLURM_NTASKS
    # The tasks find their own numbers in their own environment, hence the single quotes.
    # shellcheck disable=SC2016
    srun --kill-on-bad-exit=1 bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
        export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}; exec python "$0" "$@"' "$ENTRY" "$@"
    # Here the run is finished (result.json), or was stopped in time: then into the queue again, where the same recipe goes on
    # from its checkpoint. A run that failed has ended this script above, and is not repeated.
    case " $* " in *" --check "*) exit 0 ;; esac
    output_dir=$(python -c 'import sys; from vwlmm.config import read_recipe
print(read_recipe(sys.argv[1], sys.argv[2:]).training["output_dir"])' "$@")
    if [ ! -f "$output_dir/result.json" ]; then
        echo "launch.sh: $output_dir is not finished: back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
elif [ -n "${HOSTFILE:-}" ]; then
    # Several machines through ssh: lines of "name slots=8". DeepSpeed alone would go on with this machine only if it is missing.
    [ -s "$HOSTFILE" ] || { echo "launch.sh: HOSTFILE=$HOSTFILE: a file with lines like 'node1 slots=8' was expected" >&2; exit 1; }
    exec deepspeed --hostfile "$HOSTFILE" ${GPUS:+--num_gpus "$GPUS"} "$ENTRY" "$@"
else
    # This machine.
    exec python -m torch.distributed.run --standalone --nproc-per-node "${GPUS:-$(count_gpus)}" "$ENTRY" "$@"
fi
