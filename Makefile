# Two commands for a newcomer: `make demo` and `make test`. Needs Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Two at a time; tests that must not run together are in one group (tests/conftest.py). A test that
# ends its process fails once: in a new process it would be run again, eight times.
PYTEST := $(BIN)/pytest -n 2 --no-loadscope-reorder --max-worker-restart 0

.PHONY: help demo seeds test test-slow test-all check lint unit bench gpu docs ui clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; specify another, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## Install, train on the embedded data set, evaluate, search
	$(BIN)/labn train configs/demo.yaml
	$(BIN)/labn evaluate runs/demo
	$(BIN)/labn search configs/search/demo.yaml
	@echo
	@echo "The maps:     runs/demo/evaluation/test/attention.png"
	@echo "The search:   runs/search-demo/summary.md and runs/search-demo/figures"
	@echo "The tracker:  make ui"

seeds: demo  ## Train and evaluate the demo from two more seeds, and compare all three
	for seed in 1 2; do \
	  $(BIN)/labn train configs/demo.yaml train.seed=$$seed output_dir=runs/demo-$$seed && \
	  $(BIN)/labn evaluate runs/demo-$$seed || exit 1; \
	done
	$(BIN)/labn report runs/demo runs/demo-1 runs/demo-2

test: $(INSTALLED)  ## Install, run all but the slow tests
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)  ## Run only the slow tests: kills, clusters, full disks, browsers
	$(PYTEST) -m slow

test-all: test test-slow  ## Run every test

check: lint unit  ## Format, lint, types, import layers, unit tests

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --package tests.bench
	$(BIN)/lint-imports
	$(BIN)/codespell

unit: $(INSTALLED)
	$(PYTEST) tests/unit tests/golden -m "not slow" -q

bench: $(INSTALLED)  ## Measure speed and memory, side by side with other implementations
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench --out runs/bench
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(BIN)/python -m tests.gpu evaluation training compiled others --out runs/bench; \
	fi

gpu:  ## Prove exactness and speed on one GPU; needs no Ray, MLflow or Optuna
	$(if $(wildcard $(INSTALLED)),$(BIN)/python,$(PYTHON)) -m tests.gpu --out runs/gpu

docs: $(INSTALLED)  ## Build the pages and the reference into docs/_build; warnings are errors
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build

ui: $(INSTALLED)  ## Open the tracker: MLflow's page, on 127.0.0.1
	$(BIN)/labn ui

clean:  ## Remove the virtual environment and the files of runs
	rm -rf .venv runs mlruns mlflow.db .pytest_cache .mypy_cache .ruff_cache
