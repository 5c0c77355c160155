"""`vwlmm eval`: asks a model a benchmark's questions and scores the answers; resumable, sharded, equal for every batch size."""
