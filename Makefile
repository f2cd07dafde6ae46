# vqgpt. `make help` lists the targets.

DATASET ?= digits
PYTHON  ?= python3

VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
VQGPT   := $(BIN)/vqgpt
RECIPE  := pipelines/$(DATASET).toml
RUN     := runs/$(DATASET)
CACHE   := cache/$(DATASET).zarr
SAMPLES := $(RUN)/samples.zarr

# A token cache that was interrupted has a manifest already: build its target again until the manifest says complete.
unless_complete = $(shell grep -q '"status": "complete"' $(1)/zarr.json 2>/dev/null || echo FORCE)

.PHONY: help all setup test check format bench constraints clean FORCE
.PRECIOUS: $(CACHE)/zarr.json $(SAMPLES)/zarr.json

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  DATASET=name chooses the recipe of make all: $(basename $(notdir $(wildcard pipelines/*.toml)))"

all: $(RUN)/samples.png $(RUN)/reconstructions.png ## Run the whole pipeline (DATASET=digits)
	@echo "$(DATASET) is up to date. The picture: $(RUN)/samples.png"

$(RUN)/vqgan.pt: $(RECIPE) | $(READY)
	$(VQGPT) vqgan train --recipe $(RECIPE) --out $@ --overwrite

$(RUN)/reconstructions.png: $(RUN)/vqgan.pt | $(READY)
	$(VQGPT) vqgan reconstruct --recipe $(RECIPE) --checkpoint-vae $(RUN)/vqgan.pt --out $@ --overwrite

$(CACHE)/zarr.json: $(RUN)/vqgan.pt $(call unless_complete,$(CACHE)) | $(READY)
	$(VQGPT) tokenize --recipe $(RECIPE) --checkpoint-vae $(RUN)/vqgan.pt --cache $(CACHE) --overwrite

$(RUN)/gpt.pt: $(CACHE)/zarr.json | $(READY)
	$(VQGPT) train --recipe $(RECIPE) --cache $(CACHE) --out $@ --overwrite

$(SAMPLES)/zarr.json: $(RUN)/gpt.pt $(call unless_complete,$(SAMPLES)) | $(READY)
	$(VQGPT) sample --recipe $(RECIPE) --checkpoint-gpt $(RUN)/gpt.pt --out $(SAMPLES) --tokens-only --overwrite

$(RUN)/samples.png: $(SAMPLES)/zarr.json $(RUN)/vqgan.pt | $(READY)
	$(VQGPT) render $(SAMPLES) --recipe $(RECIPE) --checkpoint-vae $(RUN)/vqgan.pt --out $@ --overwrite

pipelines/%.toml:
	@echo "there is no recipe $@; there are: $(basename $(notdir $(wildcard pipelines/*.toml)))" >&2; exit 2

setup: $(READY) ## Make .venv with everything in it (uv where it is at hand, else pip)

$(READY): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python '>=3.11' $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "vqgpt needs Python 3.11 or later: make PYTHON=python3.12 setup" >&2; exit 2; }; \
	  $(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt install python3-venv" >&2; exit 2; }; \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest -n auto

check: $(READY) ## Format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@! grep -nE '://|index' constraints.txt

format: $(READY) ## Format the code, and make docs/reference.md
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m vqgpt.cli.reference > docs/reference.md

bench: $(READY) ## Print the figures of the digits pipeline, of the VQ-GAN step, of reading tokens, of memory settings
	$(BIN)/python benchmarks/digits_quality.py
	$(BIN)/python benchmarks/vqgan_step.py
	$(BIN)/python benchmarks/token_reading.py
	$(BIN)/python benchmarks/encoder_memory.py

constraints: ## Resolve constraints.txt anew (needs uv)
	{ sed -n 1p constraints.txt; uv pip compile --universal --python-version 3.11 --no-header --no-annotate --all-extras pyproject.toml; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove the environment and everything that pipelines made
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find cache -mindepth 1 -maxdepth 1 ! -name FORMAT.md -exec rm -rf {} +
