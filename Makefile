# Everything a person does here: `make` lists it. Set-up is done by itself, and again only when the lock changes.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11 or newer; PYTHON=/path/to/python overrides it.
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
PIP := PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
# Two workers: the suite waits more than it works, and a broker per worker has its price.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
ARGS ?=

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/.run ## TaskFlux and all it needs, on this machine, until Ctrl-C (ARGS="--port 8081" is passed on)
	@exec $(BIN)/taskflux dev $(ARGS)

.PHONY: observe
observe: $(VENV)/.run ## the same with Prometheus and Grafana looking on, where they are installed
	@exec $(BIN)/taskflux dev --observe $(ARGS)

.PHONY: setup
setup: $(VENV)/.dev ## the command at .venv/bin/taskflux, and the tools to work on it
	@echo "$(BIN)/taskflux is ready"

.PHONY: test
test: $(VENV)/.dev ## unit and integration tests against embedded servers (ARGS is passed to pytest)
	$(PYTEST) tests/unit tests/readme tests/integration $(ARGS)

.PHONY: test-kafka
test-kafka: $(VENV)/.dev ## the integration tests against a real Apache Kafka (Java 17 and Maven)
	@$(BIN)/python -m tests.kafka
	TASKFLUX_TEST_BROKER=kafka $(PYTEST) tests/kafka tests/integration $(ARGS)

.PHONY: test-pgbouncer
test-pgbouncer: $(VENV)/.dev ## the integration tests behind a real PgBouncer in transaction mode
	@$(BIN)/python -m tests.pgbouncer
	TASKFLUX_TEST_PGBOUNCER=1 $(PYTEST) tests/pgbouncer tests/integration $(ARGS)

.PHONY: test-api
test-api: $(VENV)/.dev ## schemathesis: the running API against its own document
	$(BIN)/python -m pytest -m slow tests/integration/system/test_schemathesis.py $(ARGS)

.PHONY: test-observability
test-observability: $(VENV)/.dev ## dashboards and alerts, against a real Prometheus that scrapes a running stack
	@$(BIN)/python -m tests.observability $(ARGS)

.PHONY: drill
drill: $(VENV)/.dev ## 20,000 mixed tasks while one process after the other is killed (ARGS="--only …")
	$(BIN)/python -m tests.drills $(ARGS)

.PHONY: test-readme
test-readme: $(VENV)/.dev ## the commands of the README, run as written in a fresh clone
	@$(BIN)/python -m tests.readme

.PHONY: lint
lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy --strict

.PHONY: bench
bench: $(VENV)/.dev ## the benchmark suite beside its floors
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: docs
docs: $(VENV)/.dev ## the pages that are made from the code
	@{ echo '# Settings'; echo; \
	  echo 'Read from the environment. This page is made by `make docs` from the classes that read them.'; echo; \
	  $(BIN)/taskflux config --reference; } > docs/settings.md
	@$(BIN)/taskflux openapi > docs/openapi.json
	@$(BIN)/python -m handlers.cli.metrics_table docs/observability.md

.PHONY: dashboards
dashboards: $(VENV)/.dev ## Grafana's dashboards and the status page's plots, from charts/generate/dashboards
	@$(BIN)/python -m charts.generate.dashboards $(ARGS)

.PHONY: lock
lock: $(VENV)/.dev ## requirements/*.txt anew from pyproject.toml (ARGS=--upgrade for the newest versions)
	requirements/lock $(ARGS)

.PHONY: clean
clean: ## away with what make made; .taskflux, the data of `make run`, stays
	rm -rf $(VENV) build dist .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find handlers tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# What `make run` needs, and what working on it needs besides: the second one has all of the first.
$(VENV)/.run: requirements/local.txt pyproject.toml $(BIN)/python
	@echo "Setting up $(VENV) (once, from requirements/local.txt) …"
	@$(PIP) --require-hashes -r requirements/local.txt
	@$(PIP) --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml $(BIN)/python
	@echo "Setting up $(VENV) (once, from requirements/dev.txt) …"
	@$(PIP) --require-hashes -r requirements/dev.txt
	@$(PIP) --no-deps -e .
	@touch $(VENV)/.run $@

# Missing, or a link to a Python that is gone.
$(BIN)/python:
	@for python in $(PYTHONS); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$$python has no venv module: install it (on Debian and Ubuntu: apt install python3-venv) and run make again" >&2; \
	    exit 1; }; \
	  exec "$$python" -m venv --clear $(VENV); \
	done; \
	echo "TaskFlux needs Python 3.11 or newer, and none of these is one: $(PYTHONS)" >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.11 …" >&2; \
	exit 1
