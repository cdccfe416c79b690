# Everything a newcomer needs. `make demo` and `make test` work in a fresh clone with only Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FIT := $(BIN)/calm fit --config configs/key_value

.DEFAULT_GOAL := help
.PHONY: help demo table1 backbones test test-all check clean

help: ## Show this list.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lora]' --group dev
	@touch $@

demo: $(READY) ## Compose two small models, run the first controls, print the table.
	$(BIN)/calm compare configs/key_value/demo.yaml

table1: $(READY) ## The paper's Table 1 with all controls and three seeds; can be stopped.
	$(BIN)/calm compare configs/key_value/table1.yaml

backbones: $(READY) ## Train the demo's two backbones again, from nothing.
	rm -rf runs/backbones
	$(BIN)/python -m calm_plugins.tasks.key_value.number_embeddings \
	    configs/models/key_value/anchor runs/backbones/anchor_0 --seed 1
	$(FIT)/anchor.yaml --run runs/backbones/anchor_1
	$(FIT)/anchor.yaml --config configs/key_value/anchor_2_longer.yaml --run runs/backbones/anchor_2
	for stage in 1_pairs 2_expressions 3_values 4_three 5_noise; do \
	    $(FIT)/augmenting.yaml --config configs/key_value/augmenting_$$stage.yaml \
	        --run runs/backbones/augmenting_$${stage%%_*} || exit 1; \
	done
	cp runs/backbones/anchor_2/model/* configs/models/key_value/anchor/
	cp runs/backbones/augmenting_5/model/* configs/models/key_value/augmenting/

test: $(READY) ## Lint, types, import rules, tests: what CI runs.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q

test-all: $(READY) ## The tests that take long, too.
	$(BIN)/pytest -q -m "not gpu"

check: test ## The same as test.

clean: ## Remove the virtual environment and what the tools left.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
