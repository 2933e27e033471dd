# `make` lists the targets. Everything happens in .venv; needs Python 3.11 or newer and a package index, nothing else.
#   PYTHON=...  the interpreter that makes .venv        TORCH=...  what to install as PyTorch
#   ARGS=...    more arguments for the demo or pytest

PYTHON ?=
TORCH ?= torch==2.13.0
ARGS ?=

BIN := .venv/bin
# PIP_USER: a user-wide `pip install --user` setting would refuse to install into .venv.
PIP := PIP_USER=0 $(BIN)/python -m pip --disable-pip-version-check -qq
INSTALL := $(PIP) install -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test check clean

help:
	@echo "make demo    install, and watch the shipped model write code"
	@echo "make serve   install the server, and serve the shipped model on http://127.0.0.1:8000  (ARGS=\"--port 80\")"
	@echo "make test    install the developer's tools and run the tests  (ARGS=\"-k name\")"
	@echo "make check   ruff, mypy and the layers of the imports"
	@echo "make clean   remove .venv and all caches"

demo: .venv/core
	@$(BIN)/python -m openmercury.cli.main demo $(ARGS)

serve: .venv/server
	@$(BIN)/python -m openmercury.cli.main serve $(ARGS)

test: .venv/dev
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(ARGS)

check: .venv/dev
	@echo "==> ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "==> ruff format"
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check .; exit 1; }
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> lint-imports"
	@$(BIN)/lint-imports --no-logo

clean:
	@echo "==> removing .venv and caches"
	@rm -rf .venv build dist openmercury.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@for folder in openmercury tests; do \
		if [ -d $$folder ]; then find $$folder -type d -name __pycache__ -prune -exec rm -rf {} +; fi; \
	done

# The stamps below are files in .venv: a second run finds them and is instant. PyTorch goes in first and alone, so that
# its exact build is settled before anything else asks for "some torch".
.venv/core: pyproject.toml constraints.txt | .venv/made
	@echo "==> installing $(TORCH) (the largest part: a few minutes)"
	@$(INSTALL) "$(TORCH)"
	@echo "==> installing openmercury"
	@$(INSTALL) -e .
	@touch $@

.venv/server: .venv/core
	@echo "==> installing the server"
	@$(INSTALL) -e ".[server]"
	@touch $@

.venv/dev: .venv/core
	@echo "==> installing the developer's tools"
	@$(INSTALL) -e ".[dev]"
	@touch $@

.venv/made:
	@found=; \
	for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3 python3.12 python3.13 python3.14); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "error: no Python 3.11 or newer found: install one, or say make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "==> making .venv with $$("$$found" --version)"; \
	"$$found" -m venv --clear .venv
	@touch $@
