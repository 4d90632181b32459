# pdref: one command each. The first one builds .venv from requirements.lock; nothing else has to be installed.

# The first of these that is Python 3.11 or newer and can make environments is used; `make env PYTHON=...` names another.
PYTHON  ?= python3.11 python3.12 python3.13 python3.14 python3 python
JOBS    ?= 2
LAB     ?=

READY   := .venv/.ready
PY      := .venv/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check
# One thread for each worker: on a few cores, workers that all thread slow one another down.
PYTEST   = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(JOBS) --dist loadfile
NOTEBOOKS = $(wildcard notebooks/*.ipynb solutions/*.ipynb)

# A kernel called python3 in the user's home must not hide the one in .venv.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help env demo lab test lint exercises clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

env: $(READY)  ## build .venv from requirements.lock (the others do it by themselves)
	@echo ".venv is ready"

demo: $(READY)  ## train a small model, decode it three ways, compare, show (minutes)
	$(PY) -m pdref demo

lab: $(READY)  ## open JupyterLab at the first chapter (LAB="--no-browser" passes options on)
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB)

test: lint  ## ruff, pytest, then every notebook (JOBS=4 uses four cores)
	$(PYTEST) -m "not slow"
ifneq ($(NOTEBOOKS),)
	$(PYTEST) --nbval-lax --nbval-current-env $(NOTEBOOKS)
endif

lint: $(READY)  ## ruff: rules and formatting
	$(PY) -m ruff check
	$(PY) -m ruff format --check

exercises: $(READY)  ## make the exercises from their solutions
	$(PY) solutions/make_exercises.py

clean:  ## remove .venv, builds and caches (out/ stays: it holds your results)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +

# Built anew whenever the lock changes, so that .venv holds the lock and nothing else.
# torch goes first and aloud, because it is by far the largest download.
$(READY): requirements.lock
	@for python in $(PYTHON); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Building .venv with $$($$python --version); the first time takes minutes"; \
	        exec $$python -m venv --clear .venv; \
	    fi; \
	done; \
	echo "pdref needs Python 3.11 or newer with its venv module; none of these is: $(PYTHON)" >&2; \
	echo "Install one (on Debian or Ubuntu: python3 and python3-venv), or name yours: make env PYTHON=/path/to/python3.11" >&2; \
	exit 1
	$(PIP) install --constraint requirements.lock torch
	$(PIP) install --quiet --requirement requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)
