# Sourced by the scripts beside it: one process, or one a GPU with torchrun when NUM_GPUS says so.
evaluate() {
  if [ "${NUM_GPUS:-1}" -gt 1 ]; then
    torchrun --standalone --nproc_per_node "$NUM_GPUS" eval/evaluate.py "$@"
  else
    ${PYTHON:-python3} eval/evaluate.py "$@"
  fi
}
