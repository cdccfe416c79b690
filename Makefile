# Everything a newcomer needs. `make demo` and `make test` work in a fresh clone with only Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FIT := $(BIN)/calm fit --config configs/key_value
# Two processes: the tests' models are so small that one processor each is the fastest.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadscope

.DEFAULT_GOAL := help
.PHONY: help demo table1 rivals routing_suffices rewriting_suffices forgetting translation_small \
    backbones two_tokenizers two_models \
    keys_25k families faults wheel check test test-all pictures docs clean

help: ## Show this list.
	@grep -E '^[a-z0-9_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lora]' --group dev
	@touch $@

demo: $(READY) ## Compose two small models, run the first controls, print the table.
	$(BIN)/calm compare configs/key_value/demo.yaml

table1: $(READY) ## The paper's Table 1 with all controls and three seeds; can be stopped.
	$(BIN)/calm compare configs/key_value/table1.yaml

rivals: $(READY) ## Every way to join two models, in one table with three seeds.
	$(BIN)/calm compare configs/key_value/rivals.yaml

routing_suffices: $(READY) ## A setting in which routing ought to win: its table.
	$(BIN)/calm compare configs/key_value/routing_suffices.yaml

rewriting_suffices: $(READY) ## One in which rewriting ought to win: trains its anchors, then compares.
	[ -e runs/aloud/anchor/model ] || $(BIN)/calm fit --config configs/key_value/aloud.yaml \
	    --run runs/aloud/anchor
	[ -e runs/aloud/other/model ] || $(BIN)/calm fit --config configs/key_value/aloud.yaml \
	    --data.seed 2 --run runs/aloud/other
	$(BIN)/calm compare configs/key_value/rewriting_suffices.yaml

TRAIN := configs/key_value/train_augmenting.sh
VARIANTS := configs/key_value/variants

backbones: $(READY) ## Train the demo's two backbones again, from nothing.
	rm -rf runs/backbones
	$(BIN)/python -m calm_plugins.tasks.key_value.number_embeddings \
	    configs/models/key_value/anchor runs/backbones/anchor_0 --seed 1
	$(FIT)/anchor.yaml --run runs/backbones/anchor_1
	$(FIT)/anchor.yaml --config configs/key_value/anchor_2_longer.yaml --run runs/backbones/anchor_2
	$(TRAIN) runs/backbones/augmenting
	cp runs/backbones/anchor_2/model/* configs/models/key_value/anchor/
	cp runs/backbones/augmenting/5/model/* configs/models/key_value/augmenting/
	$(TRAIN) runs/backbones/anchor_with_keys $(VARIANTS)/from_the_anchor.yaml 1000 1000 1200 800 0
	cp runs/backbones/anchor_with_keys/4/model/* configs/models/key_value/anchor_with_keys/

two_tokenizers: $(READY) ## The experiment with two tokenizers: trains its augmenting model, then compares.
	$(TRAIN) runs/two_tokenizers/augmenting $(VARIANTS)/letter_pairs.yaml
	$(BIN)/calm compare configs/key_value/two_tokenizers.yaml

two_models: $(READY) ## The experiment with two augmenting models that know half of the keys each.
	$(TRAIN) runs/two_models/even $(VARIANTS)/even_keys.yaml
	$(TRAIN) runs/two_models/odd $(VARIANTS)/odd_keys.yaml 1000 1200 1200 800 1800
	$(BIN)/calm compare configs/key_value/two_models.yaml

keys_25k: $(READY) ## The experiment with 25,000 keys: teaches the augmenting model the others, then compares.
	[ -e runs/keys_25k/keys/model ] || $(FIT)/augmenting.yaml \
	    --config configs/key_value/augmenting_6_keys_25k.yaml --run runs/keys_25k/keys
	[ -e runs/keys_25k/noise/model ] || $(FIT)/augmenting.yaml \
	    --config configs/key_value/augmenting_7_noise_25k.yaml --run runs/keys_25k/noise
	$(BIN)/calm compare configs/key_value/keys_25k.yaml

forgetting: $(READY) ## What further training forgets, and what replay keeps: real, or drawn from the model.
	$(BIN)/calm compare configs/key_value/forgetting.yaml

SMALL := configs/translation/small
FRESH := $(BIN)/python -m calm_lightning.fresh_model runs/translation_small

translation_small: $(READY) ## The experiment with real translations: trains its two models, then compares.
	[ -e runs/translation_small/anchor_0 ] || $(FRESH)/anchor_0 \
	    --texts $(SMALL)/anchor.yaml $(SMALL)/augmenting.yaml
	[ -e runs/translation_small/augmenting_0 ] || $(FRESH)/augmenting_0 --layers 3 \
	    --like runs/translation_small/anchor_0
	[ -e runs/translation_small/anchor/model ] || $(BIN)/calm fit --config $(SMALL)/anchor.yaml \
	    --run runs/translation_small/anchor
	[ -e runs/translation_small/augmenting/model ] || $(BIN)/calm fit \
	    --config $(SMALL)/augmenting.yaml --run runs/translation_small/augmenting
	$(BIN)/calm compare $(SMALL)/compare.yaml

faults: $(READY) ## Stop runs by every fault and go on with them: the table of docs/faults.md.
	$(BIN)/python benchmarks/faults.py

check: docs ## Lint, types, import rules, documentation: what takes a minute.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## All of that and the tests: what CI runs.
	$(PYTEST)

pictures: $(READY) ## Take the pictures of docs/how-to/look-inside.md again (needs Chromium).
	[ -e runs/demo/rows/cross_attention/seed_0/config.yaml ] || $(BIN)/calm compare configs/key_value/demo.yaml
	[ -e runs/pictures/model ] || $(BIN)/calm fit --run runs/pictures \
	    --config runs/demo/rows/cross_attention/seed_0/config.yaml \
	    --trainer.val_check_interval 100 --data.validation_examples 64
	$(BIN)/python docs/pictures.py runs/pictures

docs: $(READY) ## Build the documentation into build/docs; a warning is an error.
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

test-all: $(READY) ## The tests that take long, and those of quantised backbones, too.
	$(BIN)/pip install --quiet --constraint constraints.txt 'torchao>=0.18' mergekit
	$(PYTEST) -m "not gpu"

wheel: $(READY) ## Build the wheel from a clean copy, and use it from an empty folder.
	$(BIN)/pytest -q -m slow tests/end_to_end/test_wheel.py

families: $(READY) ## Write docs/families.md from the families that are tested.
	CALM_WRITE_DOCS=1 $(BIN)/pytest -q tests/conformance/test_families.py

clean: ## Remove the virtual environment and what the tools left.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
