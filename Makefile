# Needs Python 3.11 or newer and make; everything else is set up in a virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRAIN := $(VENV)/.installed-train
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs

.PHONY: help install demo test test-lowest test-newest test-extras fuzz check docs clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(DEV) ## Set up the virtual environment for development
	@echo "next: . $(BIN)/activate"

demo: $(TRAIN) ## See the whole path on generated images, in a few minutes
	$(BIN)/vit21k demo

test: $(DEV) ## Run all tests; FAST=1 leaves the slow ones out
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not gpu$(if $(FAST), and not slow)"

fuzz: ## Fuzz the compiled code for two minutes; needs only Python and a C compiler
	$(PYTHON) tools/fuzz/fuzz_native.py --seconds 120

test-lowest: $(DEV) ## Run the fast tests with the lowest versions that pyproject.toml allows
	$(BIN)/python tools/check/check_versions.py lowest --python $(PYTHON)

test-newest: $(DEV) ## Run all tests with the newest versions; PYTHON=python3.13 for another Python
	$(BIN)/python tools/check/check_versions.py newest --python $(PYTHON)

test-extras: $(DEV) ## Run the tests of optional features (ray, s3fs, wandb, a browser ...): before a release
	$(BIN)/python tools/check/check_versions.py extras --python $(PYTHON)

check: $(DEV) ## All that CI runs: format, lint, types, imports, docs, wheel, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/docs/data_dictionary.py --check
	$(BIN)/python tools/docs/update_docs.py --check
	$(BIN)/python tools/docs/models_page.py --check
	$(BIN)/python tools/docs/recipes_page.py --check
	$(BIN)/python tools/check/check_wheel.py
	$(MAKE) test

docs: $(DOCS) ## Build the documentation as a web site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f .mkdocs.yml

clean: ## Remove what the other targets made
	rm -rf $(VENV) .venvs build dist vit21k/_native/*.so demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find vit21k tools tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

NATIVE := $(wildcard vit21k/_native/*.[ch] vit21k/_native/jpeg/*.[ch])

$(TRAIN): pyproject.toml $(NATIVE) | $(BIN)/python
	@echo "installing vit21k with torch into $(VENV); this downloads a few gigabytes once"
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	@touch $@

$(DEV): $(TRAIN)
	$(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	@touch $@

$(DOCS): $(DEV)
	$(BIN)/python -m pip install --quiet --editable '.[train,dev,docs]'
	@touch $@
