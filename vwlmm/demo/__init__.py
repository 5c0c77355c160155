"""The demonstration on easy-VQA: its data, its scoring and its report; `vwlmm/demo/run.py` trains the stages."""
