# One environment of the project's own; nothing outside it is touched. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Nothing is fetched at run time; DeepSpeed need not look for an accelerator that is not there.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
RECIPE ?= train/forkme.yaml
MODEL ?= checkpoints/demo/4_visual_words
RESULTS ?= results/$(notdir $(patsubst %/,%,$(MODEL)))
IMAGE ?= checkpoints/embedded/easy-vqa/images/test/0.png

.DEFAULT_GOAL := help
.PHONY: help install demo compare test test-slow test-gpu test-lmms-eval check format bench bench-convert train eval chat clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One install serves every target; it is made again when what is asked for changes.
$(VENV)/installed: setup.py constraints.txt requirements-embedded.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[train,eval,demo,dev]"
	$(BIN)/pip install --quiet --no-deps -r requirements-embedded.txt
	@touch $@

install: $(VENV)/installed  ## set up .venv: CPU torch, everything the targets need

demo: install  ## train all four stages on real pictures, ask, draw, write checkpoints/demo/report.html (15 minutes, 2 cores)
	$(BIN)/python -m vwlmm.demo.run

compare: install  ## visual words against plain LLaVA and pseudo-image features, three seeds: docs/visual_words.md (an hour)
	$(BIN)/python -m vwlmm.demo.compare

test: install  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: install  ## the tests that take minutes, real weights among them
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: install  ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

# Beside .venv, whose packages it sees, so that nothing of lmms-eval's changes the project's own environment.
LMMS_EVAL := .venv-lmms-eval
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
$(LMMS_EVAL)/installed: requirements-lmms-eval.txt $(VENV)/installed
	$(PYTHON) -m venv $(LMMS_EVAL)
	$(BIN)/python $(PURELIB) > "$$($(LMMS_EVAL)/bin/python $(PURELIB))/project.pth"
	$(LMMS_EVAL)/bin/pip install --quiet --no-deps -r requirements-lmms-eval.txt
	@touch $@

test-lmms-eval: $(LMMS_EVAL)/installed  ## the tests of the lmms-eval plug-in, offline
	VWLMM_LMMS_PYTHON=$(CURDIR)/$(LMMS_EVAL)/bin/python $(BIN)/python -m pytest -m slow tests/integrations

check: install  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## measure speed and memory: bench/results.md
	$(BIN)/python bench/visual_word_loss.py --out bench/results.md
	$(BIN)/python bench/training_step.py --out bench/results.md
	$(BIN)/python bench/vlap.py --out bench/results.md
	$(BIN)/python bench/contrastive.py --out bench/results.md
	$(BIN)/python bench/feature_cache.py --out bench/results.md
	$(BIN)/python bench/curation.py --out bench/results.md

bench-convert: install  ## convert a checkpoint of 7B shapes (45 GB of disk, a few minutes): bench/results.md
	$(BIN)/python bench/convert.py --out bench/results.md

train: install  ## train a recipe: make train RECIPE=train/forkme.yaml
	$(BIN)/vwlmm train $(RECIPE)

eval: install  ## ask the demo model (or MODEL=…) the embedded benchmarks: results/…/table.md (minutes, no download)
	$(BIN)/vwlmm eval $(MODEL) --suite eval/suites/embedded.yaml --out $(RESULTS)

chat: install  ## talk with the demo model: make chat MODEL=… IMAGE=…
	$(BIN)/vwlmm chat $(MODEL) --image $(IMAGE)

clean:  ## remove the environment and caches, never checkpoints
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
