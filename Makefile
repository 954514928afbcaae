# Every command creates .venv by itself with the first Python >= 3.12 it finds, on PATH or under pyenv.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHELL := /bin/sh

.PHONY: demo test check layers mypy pyright bench chaos clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    watch the research brief run on an embedded PostgreSQL; ARGS=--ui in a browser, too"
	@echo "make test    lint, types, layers, tests, wheel and sdist"
	@echo "make check   lint, types and layers alone"
	@echo "make bench   Baton beside plain Oban: medians and ratios; ARGS=page for the page in a browser, ARGS=models for calls of models"
	@echo "make chaos   three minutes of crashes; ARGS=\"--seed N --seconds S\""

demo: $(STAMP)
	@$(BIN)/baton demo $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j3 layers mypy pyright

layers:
	$(BIN)/lint-imports --no-cache

mypy:
	$(BIN)/mypy

pyright:
	$(BIN)/pyright

test: check
	@sh tools/browser.sh
	@# Hundreds of processes are started, each quicker with its bytecode at hand.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m bench $(ARGS)

chaos: $(STAMP)
	@$(BIN)/python -m tests.lab $(ARGS)

$(STAMP): pyproject.toml constraints.txt tools/venv.sh
	@sh tools/venv.sh $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
