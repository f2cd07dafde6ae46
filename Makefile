# vqgpt. `make help` lists the targets.

DATASET ?= digits
PYTHON  ?= python3

VENV     := .venv
BIN      := $(VENV)/bin
READY    := $(VENV)/.ready
VQGPT    := $(BIN)/vqgpt
RECIPE   := pipelines/$(DATASET).toml
RUN      := runs/$(DATASET)
CACHE    := cache/$(DATASET).zarr
SAMPLES  := $(RUN)/samples.zarr
SETTINGS := $(RUN)/.settings
RESULTS  := $(RUN)/vqgan.pt $(RUN)/reconstructions.png $(CACHE)/zarr.json $(RUN)/gpt.pt $(SAMPLES)/zarr.json $(RUN)/samples.png
STAGES   := vqgan-train vqgan-reconstruct tokenize train sample render

.PHONY: help all keep setup test check format bench constraints clean clean-runs FORCE
.PRECIOUS: $(RESULTS) $(STAGES:%=$(SETTINGS)/%)  # a signal does not make it delete these

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  DATASET=name chooses the recipe of make all: $(basename $(notdir $(wildcard pipelines/*.toml)))"
	@echo "  OVERWRITE=1 lets make all replace a trained network or a token cache"

all: $(RUN)/samples.png $(RUN)/reconstructions.png ## Run the whole pipeline (DATASET=digits)
	@echo "$(DATASET) is up to date. The picture: $(RUN)/samples.png"

# What a stage reads of the recipe, $(1) its table: the lines above all tables and those of its own, without comments;
# a value of several lines is joined, as their order counts.
settings = awk -v table=$(1) '!/["\047]/ {sub(/\043.*/, "")} {sub(/^[ \t]+/, ""); sub(/[ \t\r]+$$/, "")} /^(\043.*)?$$/ {next} \
  /^\[[ \t"\047]*[A-Za-z_-]+[ \t"\047]*\][ \t]*(\043.*)?$$/ {split($$0, word, /[][ \t"\047]+/); others = word[2] != table; next} \
  !others {printf "%s%s", /^[^=[]+=/ ? "\n" : " ", $$0} END {print ""}' $(RECIPE) | LC_ALL=C sort

# A file for each stage has the settings that its result was made with; where there is none, the present ones. It is
# older than all results, or, if the recipe has other settings now, newer. `+` and shell: with make -n too, which else
# takes it for new, and says all of this.
$(STAGES:%=$(SETTINGS)/%): $(SETTINGS)/%: $(RECIPE) FORCE
	+@: $(shell mkdir -p $(@D); test -e $@ || { $(call settings,$*); } > $@; \
	  if { $(call settings,$*); } | cmp -s - $@; then touch -t 198001010000 $@; else touch $@; fi)

# Told once a result is made.
made_with = @{ $(call settings,$(1)); } > $(SETTINGS)/$(1).new && mv $(SETTINGS)/$(1).new $(SETTINGS)/$(1)

# What took long is not replaced unasked: a training by this, a token cache by vqgpt itself, which knows what it is of.
overwrite = $(if $(filter 1,$(OVERWRITE)),--overwrite)
not_unasked = @if test -e $@ && test -z "$(overwrite)"; then \
  if { $(call settings,$(1)); } | cmp -s - $(SETTINGS)/$(1); then echo "$@ is older than $(filter-out FORCE,$?)"; \
  else echo "$@ was trained with other settings than are in $(RECIPE) now:"; \
    { $(call settings,$(1)); } | diff $(SETTINGS)/$(1) - | sed -n 's/^</  then:/p; s/^>/  now:/p'; fi >&2; \
  echo "make all OVERWRITE=1 trains it anew; make keep takes it as it is" >&2; exit 2; fi

# A token cache that was interrupted has a manifest already: build its target again until the manifest says complete.
unless_complete = $(shell grep -q '"status": "complete"' $(1)/zarr.json 2>/dev/null || echo FORCE)

$(RUN)/vqgan.pt: $(SETTINGS)/vqgan-train | $(READY)
	$(call not_unasked,vqgan-train)
	$(VQGPT) vqgan train --recipe $(RECIPE) --out $@ $(overwrite)
	$(call made_with,vqgan-train)

$(RUN)/reconstructions.png: $(RUN)/vqgan.pt $(SETTINGS)/vqgan-reconstruct | $(READY)
	$(VQGPT) vqgan reconstruct --recipe $(RECIPE) --checkpoint-vae $(RUN)/vqgan.pt --out $@ --overwrite
	$(call made_with,vqgan-reconstruct)

$(CACHE)/zarr.json: $(RUN)/vqgan.pt $(SETTINGS)/tokenize $(call unless_complete,$(CACHE)) | $(READY)
	$(VQGPT) tokenize --recipe $(RECIPE) --checkpoint-vae $(RUN)/vqgan.pt --cache $(CACHE) $(overwrite)
	$(call made_with,tokenize)

$(RUN)/gpt.pt: $(CACHE)/zarr.json $(SETTINGS)/train | $(READY)
	$(call not_unasked,train)
	$(VQGPT) train --recipe $(RECIPE) --cache $(CACHE) --out $@ $(overwrite)
	$(call made_with,train)

$(SAMPLES)/zarr.json: $(RUN)/gpt.pt $(SETTINGS)/sample $(call unless_complete,$(SAMPLES)) | $(READY)
	$(VQGPT) sample --recipe $(RECIPE) --checkpoint-gpt $(RUN)/gpt.pt --out $(SAMPLES) --tokens-only --overwrite
	$(call made_with,sample)

$(RUN)/samples.png: $(SAMPLES)/zarr.json $(RUN)/vqgan.pt $(SETTINGS)/render | $(READY)
	$(VQGPT) render $(SAMPLES) --recipe $(RECIPE) --checkpoint-vae $(RUN)/vqgan.pt --out $@ --overwrite
	$(call made_with,render)

keep: $(RECIPE) ## Take what the pipeline has made as up to date (DATASET=digits)
	@mkdir -p $(SETTINGS)
	@for result in $(RESULTS); do if test -e $$result; then touch $$result; echo "kept: $$result"; fi; done
	@rm -f $(STAGES:%=$(SETTINGS)/%)

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

clean: ## Remove the environment and the tools' caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

clean-runs: ## List all that pipelines made; with YES=1, delete it
	@for folder in runs cache; do if test -d $$folder; then \
	  find $$folder/ -mindepth 1 -maxdepth 1 ! -name FORMAT.md -exec $(if $(filter 1,$(YES)),rm -rf,du -sh) {} + ; fi; done
	@$(if $(filter 1,$(YES)),:,echo "make clean-runs YES=1 deletes these")
