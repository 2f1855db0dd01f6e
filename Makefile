# The commands of a developer and of CI. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(PYTHON) celery_task_app/cli/install.py

.DEFAULT_GOAL := help
.PHONY: help run status clean env test test-unit coverage mutation faults faults-cluster soak check audit format bench bench-peers package train notebook openapi lock

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Each requirements file is installed once, and again after it has changed: it is then newer than its mark.
# --no-deps: the files are complete, and pip 23.2 finds no hash for a package that another one requires with an extra.
$(VENV)/.installed: requirements.txt
	@$(INSTALL) --no-deps --require-hashes -r $<
	@touch $@

# requirements/test.txt has all packages of requirements.txt too.
$(VENV)/.installed-test: requirements/test.txt
	@$(INSTALL) --no-deps --require-hashes -r $<
	@touch $(VENV)/.installed $@

$(VENV)/.installed-notebook: $(VENV)/.installed requirements/notebook.txt
	@$(INSTALL) --no-deps --require-hashes -r requirements/notebook.txt
	@touch $@

run: $(VENV)/.installed ## start everything, print a first prediction, serve until Ctrl-C (PORT=8000)
	@$(BIN)/python -m celery_task_app.cli.launch

status: ## show the API, the workers, the queues and both servers of `make run` (PORT=8000)
	@test -x $(BIN)/python || { echo "Nothing is installed here yet: start the service with 'make run'."; exit 1; }
	@$(BIN)/python -m celery_task_app.cli.status

clean: ## remove the environments and caches; keep .data (accepted predictions, logs) and .env (passwords)
	@rm -rf $(VENV) $(VENV)-audit $(VENV)-peers $(VENV)-lock .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache mutants .coverage
	@find . -type d -name __pycache__ -prune -exec rm -rf {} +
	@echo "Removed the environments and caches. The accepted predictions and the logs stay in .data; to remove them: rm -r .data"

env: ## write random passwords for docker-compose into .env
	@test ! -e .env || { echo ".env exists and stays as it is. Remove it first, and the volumes with the old passwords."; exit 1; }
	@umask 077; for name in RABBITMQ_PASSWORD REDIS_PASSWORD GRAFANA_PASSWORD FLOWER_PASSWORD; do echo "$$name=$$(openssl rand -hex 24)"; done > .env
	@echo "API_KEYS=" >> .env
	@echo "Wrote .env, which only you can read. docker-compose uses it from its next start."

test: $(VENV)/.installed-test ## run every test (ARGS="-k batches")
	$(BIN)/python -m pytest $(ARGS)

test-unit: $(VENV)/.installed-test ## run the tests that need no server, in seconds
	$(BIN)/python -m pytest tests/unit -n auto $(ARGS)

coverage: $(VENV)/.installed-test ## measure the lines that unit and integration tests run; fails below 95 %
	$(BIN)/python -m pytest tests/unit tests/integration --cov --cov-report=term-missing:skip-covered $(ARGS)

mutation: $(VENV)/.installed-test ## change four modules in many places, and list the changes that no test detects (half an hour)
	$(BIN)/mutmut run
	$(BIN)/mutmut results

check: $(VENV)/.installed-test ## check lint rules, formatting, types, import rules, spelling, wording and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python .ci/wording.py
	$(BIN)/zizmor --quiet --offline .github
	@if command -v npx >/dev/null; then npx --yes --package typescript@7.0.2 tsc -p .ci/tsconfig.json; \
	else echo "Node.js is not installed, so the types of the page are not checked."; fi

format: $(VENV)/.installed-test ## format, and fix lint errors
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

faults: $(VENV)/.installed-test ## cause every fault under load, on both back-ends; writes benchmarks/faults.md (30 minutes)
	$(BIN)/python -m benchmarks.faults $(ARGS)

faults-cluster: $(VENV)/.installed-test ## break the nodes of a RabbitMQ cluster and of a store with Sentinels, ten times each (90 minutes)
	$(BIN)/python -m benchmarks.faults_cluster $(ARGS)
	$(BIN)/python -m benchmarks.failover

soak: $(VENV)/.installed-test ## cause random faults, on both back-ends in turn (MINUTES=10)
	$(BIN)/python -m benchmarks.faults --minutes $(or $(MINUTES),10) $(ARGS)

audit: ## look up known vulnerabilities of the pinned packages in the package index
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps -r requirements/test.txt

bench: $(VENV)/.installed-test ## measure the service and a synchronous app in one run (ARGS="--servers valkey")
	$(BIN)/python -m benchmarks.compare --out .data/bench $(ARGS)

# LitServe and BentoML have an environment of their own, because their pins differ from the service's.
.venv-peers/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet -r benchmarks/peers/requirements.txt
	@touch $@

bench-peers: $(VENV)/.installed-test .venv-peers/.installed ## as bench, with LitServe and BentoML; writes into benchmarks/
	$(BIN)/python -m benchmarks.compare --peers --out benchmarks/comparison $(ARGS)

package: $(VENV)/.installed ## check a model of yours and write its manifest (MODEL=mine.joblib SAMPLE=customers.csv ARGS="--out models")
	@test -n "$(MODEL)" -a -n "$(SAMPLE)" || { echo "Name both files: make package MODEL=mine.joblib SAMPLE=customers.csv"; exit 1; }
	@$(BIN)/python -m celery_task_app.cli.package "$(MODEL)" --sample "$(SAMPLE)" $(ARGS)

train: $(VENV)/.installed-notebook ## train the shipped model again (DATA=path/to/BankChurners.csv)
	$(BIN)/python -m celery_task_app.ml.train --data $(or $(DATA),BankChurners.csv) --out celery_task_app/ml/artifacts $(ARGS)

notebook: $(VENV)/.installed-notebook ## run the notebook (DATA=path/to/BankChurners.csv)
	DATA=$(abspath $(or $(DATA),BankChurners.csv)) $(BIN)/jupyter execute --inplace --timeout=1800 notebooks/BankChurner.ipynb

openapi: $(VENV)/.installed ## write openapi.json, the committed description of the HTTP API
	API_KEYS= $(BIN)/python -c "import json, app; print(json.dumps(app.app.openapi(), indent=1))" > openapi.json

lock: ## pin the versions that [tool.uv] in pyproject.toml selects, and their dependencies
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet uv
	$(VENV)-lock/bin/uv lock --quiet --upgrade
	$(EXPORT) --no-default-groups --group api -o requirements/api.txt
	$(EXPORT) --no-default-groups --group worker -o requirements/worker.txt
	$(EXPORT) -o requirements.txt
	$(EXPORT) --no-default-groups --group worker --group train --group notebook -o requirements/notebook.txt
	$(EXPORT) --no-default-groups --extra tracing -o requirements/tracing.txt
	$(EXPORT) --all-groups --all-extras -o requirements/test.txt
EXPORT := $(VENV)-lock/bin/uv export --quiet --frozen --no-header --no-annotate
