# What a developer types; CI types the same. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run test faults soak check audit format bench bench-peers train notebook lock

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A requirements file is installed once: the mark is newer than the file until the file changes.
$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements/test.txt
	$(BIN)/pip install --quiet -r requirements/test.txt
	@touch $@

$(VENV)/.installed-notebook: $(VENV)/.installed requirements/notebook.txt
	$(BIN)/pip install --quiet -r requirements/notebook.txt
	@touch $@

run: $(VENV)/.installed ## start everything, print a first prediction, serve until Ctrl-C (PORT=8000)
	@$(BIN)/python -m celery_task_app.launch

test: $(VENV)/.installed-test ## run the whole test suite
	$(BIN)/python -m pytest $(ARGS)

faults: $(VENV)/.installed-test ## strike every fault under load, on both back-ends, and write benchmarks/faults.md (20 minutes)
	$(BIN)/python -m benchmarks.faults $(ARGS)

soak: $(VENV)/.installed-test ## strike faults at random, on both back-ends in turn: make soak MINUTES=10
	$(BIN)/python -m benchmarks.faults --minutes $(or $(MINUTES),10) $(ARGS)

check: $(VENV)/.installed-test ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: ## look up known vulnerabilities of all pinned packages, where the package index tells them
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps -r requirements/test.txt

format: $(VENV)/.installed-test ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-test ## measure the service beside a synchronous app, in one run (ARGS="--servers valkey")
	$(BIN)/python -m benchmarks.compare --out .data/bench $(ARGS)

# The peers have an environment of their own: their pins are not the service's.
.venv-peers/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet -r benchmarks/peers/requirements.txt
	@touch $@

bench-peers: $(VENV)/.installed-test .venv-peers/.installed ## the same with LitServe and BentoML, into benchmarks/
	$(BIN)/python -m benchmarks.compare --peers --out benchmarks/comparison $(ARGS)

train: $(VENV)/.installed-notebook ## train the shipped model again: make train DATA=path/to/BankChurners.csv
	$(BIN)/python -m celery_task_app.ml.train --data $(or $(DATA),BankChurners.csv) --out celery_task_app/ml/artifacts $(ARGS)

notebook: $(VENV)/.installed-notebook ## run the notebook from the top: make notebook DATA=path/to/BankChurners.csv
	DATA=$(abspath $(or $(DATA),BankChurners.csv)) $(BIN)/jupyter execute --inplace --timeout=1800 notebooks/BankChurner.ipynb

lock: $(VENV)/.installed-test ## pin the newest versions that pyproject.toml allows, with all that they need
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile $(LOCK) pyproject.toml -o requirements/api.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra worker -o requirements/worker.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra worker --extra laptop -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml $(TRAINING) -o requirements/notebook.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml $(TRAINING) --extra laptop --extra test -o requirements/test.txt
TRAINING := --extra worker --extra train --extra notebook
LOCK := --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links
