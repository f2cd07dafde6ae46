# vqgpt. `make help` lists the targets.

DATASET ?= digits
PYTHON  ?= python3

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help all setup test check format bench constraints clean clean-runs

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  DATASET=name chooses the recipe of make all: $(basename $(notdir $(wildcard pipelines/*.toml)))"
	@echo "  OVERWRITE=1 lets make all replace a trained network or a token cache"

all: $(READY) ## Run the stages of the pipeline that are not up to date (DATASET=digits)
	$(BIN)/vqgpt run --recipe $(DATASET) $(if $(filter 1,$(OVERWRITE)),--overwrite)

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
	$(BIN)/python docs/make_reference.py > docs/reference.md

bench: $(READY) ## Print the figures of evaluation, of the VQ-GAN step, of reading tokens, of memory settings
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/vqgan_step.py
	$(BIN)/python benchmarks/token_reading.py
	$(BIN)/python benchmarks/encoder_memory.py

constraints: ## Resolve constraints.txt anew (needs uv)
	{ sed -n 1p constraints.txt; uv pip compile --universal --python-version 3.11 --no-header --no-annotate --all-extras pyproject.toml; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove the environment and the tools' caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# What pipelines made; /dev/null stands for nothing, as find without a place takes the current folder.
made = find $(or $(wildcard runs cache),/dev/null) -mindepth 1 -maxdepth 1 ! -name FORMAT.md

clean-runs: ## List all that pipelines made, and delete it if the answer is yes (or with CONFIRM=yes)
	@test -n "$$($(made))" || { echo "there are no runs and no caches"; exit 0; }; \
	$(made) -exec du -sh {} +; \
	answer=$(CONFIRM); test -n "$$answer" || { printf 'Delete these? Type yes: '; read -r answer || echo; }; \
	if test "$$answer" != yes; then echo "nothing is deleted; make clean-runs CONFIRM=yes does not ask"; exit 0; fi; \
	$(made) -exec rm -rf {} +
