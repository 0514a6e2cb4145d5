# Two commands for a stranger: `make demo` and `make test`. Both make the environment first.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# One thread a process: the tests run in two processes, and models this small gain nothing from a
# second thread but lose much where the machine has other work to do.
export OMP_NUM_THREADS := 1

# Where real images are, in torchvision's layout; tests that need them skip where they are not.
export IMPLICITNETS_DATA ?= $(abspath ../shared/data)

.PHONY: help env demo test test-slow docs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)$$/make \1\t\2/' | expand -t 18

env: .venv/installed ## make .venv with the pinned versions of constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e ".[dev]"
	@touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) -e ".[docs]"
	@touch $@

demo: env ## train an implicit classifier on scikit-learn's digits and report on it
	$(BIN)/implicitnets train

test: env ## lint, type check, tests, doctests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -n 2

test-slow: env ## the tests that take longer
	$(BIN)/pytest -n 2 -m slow

docs: .venv/installed-docs ## build the documentation
	$(BIN)/mkdocs build --strict

bench: env ## measure the solvers against TorchDEQ's
	unset OMP_NUM_THREADS; $(BIN)/python benchmarks/solvers.py

clean: ## remove the environment, the caches and what was built (runs/ stays)
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
