# make search   from nothing to a voted answer        make test   everything, real searches included
# make setup    the environment alone                 make quick  the tests without real searches
# make bench    how fast it is; FULL=1 takes longer    make audit  known vulnerabilities, licences
# make train    ARGS="--model resnet18 --run_name mine": goes on when the terminal is closed
# make watch    RUN=mine: its log as it grows; without RUN the newest
# make lint     ruff and mypy                         make faults 300 faults, and what is left
# make clean    remove outputs/ and ensemble/         make style  the measurements of CONTRIBUTING.md
# make again    the tests that failed, one by one
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that torch and NNI both run on; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
CONFIG ?= config_local.yml
SIDE_BY_SIDE = -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup search train watch test again quick lint style bench faults audit clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

search: setup
	@$(BIN)/python search.py --config $(CONFIG)

train: setup
	@mkdir -p outputs; out=outputs/train-$$(date +%Y%m%d-%H%M%S).out; \
	setsid nohup $(BIN)/python train.py $(ARGS) >$$out 2>&1 </dev/null & \
	sleep 0.1; echo "process $$! goes on by itself; make watch shows it, kill $$! stops it"

watch:
	@tail -n 40 -F $(if $(RUN),outputs/$(RUN)/run.log,"$$(ls -t outputs/*/run.log outputs/train-*.out 2>/dev/null | head -1)")

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no Python from 3.10 to 3.13 found; make PYTHON=/path/to/python"; exit 2; }
	@echo "installing into $(VENV) with $(PYTHON): torch is large, this takes a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-extra.txt $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# Files of tests run side by side, one more than there are processors because some of them wait, the
# longest first (tests/conftest.py), and the tests of whole searches by themselves. COVERAGE=1 prints
# what they ran.
test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(if $(COVERAGE),--cov --cov-report=term)

# Runs the tests that failed the last time once more, one after the other.
again: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest --last-failed --last-failed-no-failures none

# SEED=n repeats what a seed did, COUNT=n is how many (default: 300, ten to twenty minutes on 2 cores).
faults: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.faults

quick: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

style: $(VENV)/.installed
	@$(BIN)/python bench/style.py

# Both look at the installed packages; the first asks the package index for advisories.
audit: $(VENV)/.installed-dev
	@$(BIN)/pip-audit --local --strict --progress-spinner off; audited=$$?; \
	$(BIN)/pip-licenses --order=license --format=markdown; exit $$audited

bench: $(VENV)/.installed-dev
	@$(BIN)/python bench/run.py $(if $(FULL),--full)

clean:
	rm -rf outputs ensemble
