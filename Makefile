# Everything a person does here: `make` lists it. Set-up is done by itself, and again only when the lock changes.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11 or newer; PYTHON=/path/to/python overrides it.
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
# More workers than two cores: the suite waits much. A broker per worker has its price, and what of memory; so
# whatever adds a server of its own has fewer. tests/workers.py says what shares one.
PYTEST := $(BIN)/python -m pytest -n 3
# Set on some machines: every process that a test starts would compile all that it imports, for half of its time.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=
SYSTEM := tests/integration/system
LONG := $(SYSTEM)/test_killers.py $(SYSTEM)/test_clock_steps.py $(SYSTEM)/test_exhaustion.py \
	$(SYSTEM)/test_store_outages.py $(SYSTEM)/test_own_handler_faults.py $(SYSTEM)/test_plain_functions.py \
	tests/integration/cli/test_bare_pod.py tests/integration/cli/test_preparing.py tests/integration/cli/test_reload.py \
	tests/integration/local/test_dev.py tests/integration/local/test_hosts.py tests/integration/local/test_own_handlers.py \
	tests/integration/local/test_pages.py tests/integration/http/test_documented_clients.py tests/unit/test_install.py \
	tests/unit/test_mutations.py
# How long building a control plane may take before `make test-apiserver` gives up.
MINUTES ?= 60

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
	$(PYTEST) -n 4 tests/unit tests/readme tests/integration $(ARGS)

.PHONY: test-kafka
test-kafka: $(VENV)/.dev ## the integration tests against a real Apache Kafka (Java 17 and Maven)
	@$(BIN)/python -m tests.kafka
	TASKFLUX_TEST_BROKER=kafka $(PYTEST) -n 2 tests/kafka tests/integration $(ARGS)

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

.PHONY: mutate
mutate: $(VENV)/.dev ## small wrong changes, each of which a test must notice (ARGS="--only …", "--parts 4")
	$(BIN)/python -m tests.mutations $(ARGS)

.PHONY: protocol
protocol: $(VENV)/.dev ## the model of docs/protocol.md: 20,000 schedules must hold, and each mutation break (ARGS="--seed 1")
	@$(BIN)/python -m tests.protocol $(ARGS)

.PHONY: test-protocol
test-protocol: $(VENV)/.dev ## the store's statements in 200 drawn orders, other ones each time (ARGS is passed to pytest)
	TASKFLUX_TEST_PROTOCOL=200 $(BIN)/python -m pytest -n 2 --timeout 0 tests/integration/store/test_protocol.py $(ARGS)

.PHONY: drill
drill: $(VENV)/.dev ## 20,000 mixed tasks while one process after the other is killed (ARGS="--only …", "--kafka")
	$(BIN)/python -m tests.drills $(ARGS)

.PHONY: upgrade
upgrade: $(VENV)/.dev ## upgrade from the release before and roll back, with both releases' processes under load (ARGS="--kafka")
	$(BIN)/python -m tests.upgrade $(ARGS)

.PHONY: test-long
test-long: $(VENV)/.dev ## the longer tests: killers, outages, faults of handlers, `dev`, pages in a browser, clients, set-up
	$(BIN)/python -m pytest -n 2 -m slow $(LONG) $(ARGS)

.PHONY: test-readme
test-readme: $(VENV)/.dev ## the commands of README.md and docs/, and the tutorial, run as written
	@$(BIN)/python -m tests.readme

.PHONY: image
image: ## the container image (IMAGE, BASE, ENGINE, TARGET=dev, PIP_CONF, CA; ARGS is passed to the engine's build)
	@IMAGE="$(IMAGE)" BASE="$(BASE)" ENGINE="$(ENGINE)" TARGET="$(TARGET)" PIP_CONF="$(PIP_CONF)" CA="$(CA)" image/build $(ARGS)

.PHONY: base
base: ## prints the base image with its current digest in the registry (ARGS=--write writes it into the Dockerfile)
	@image/base.py $(ARGS)

.PHONY: test-image
test-image: $(VENV)/.dev ## the image built for real and run as the chart runs it (installs podman where it may)
	@$(BIN)/python -m tests.image $(ARGS)

.PHONY: test-chart
test-chart: $(VENV)/.dev ## the Helm chart: rendered, validated, and each container run as rendered (fetches helm, Go modules)
	@$(BIN)/python -m tests.chart
	$(PYTEST) tests/chart $(ARGS)

.PHONY: test-apiserver
test-apiserver: $(VENV)/.dev ## the chart against a real kube-apiserver, built by Go once (MINUTES for that; ARGS)
	@$(BIN)/python -m tests.e2e.apiserver --minutes $(MINUTES) test $(ARGS)

.PHONY: test-k8s
test-k8s: $(VENV)/.dev ## the development cluster, docker-compose.yaml and the CI workflow, by the programs that read them
	@$(BIN)/python -m tests.k8s test $(ARGS)

.PHONY: cluster
cluster: $(VENV)/.dev ## a whole cluster on this machine, as root on Debian, with TaskFlux in it (MINUTES for building; ARGS)
	@$(BIN)/python -m tests.e2e.cluster.machine up --minutes $(MINUTES) $(ARGS)

.PHONY: cluster-down
cluster-down: $(VENV)/.dev ## ends it, and removes what it left
	@$(BIN)/python -m tests.e2e.cluster.machine down

.PHONY: e2e
e2e: $(VENV)/.dev ## all of it on a real cluster: that of `make cluster`, kind, or KUBECONFIG_E2E (tests/e2e/cluster/place.py)
	@$(BIN)/python -m tests.e2e.cluster test $(ARGS)

.PHONY: chart
chart: $(VENV)/.dev ## the Helm chart as dist/taskflux-<version>.tgz, the same bytes from the same commit
	@$(BIN)/python -m charts.package $(ARGS)

.PHONY: chart-docs
chart-docs: $(VENV)/.dev ## the chart's values.schema.json and README.md from its values and the program (ARGS=--check changes nothing)
	@$(BIN)/python -m charts.generate $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy --strict

.PHONY: pre-commit
pre-commit: $(VENV)/.dev ## the hooks of .pre-commit-config.yaml, on all files
	@PRE_COMMIT_HOME=.cache/pre-commit $(BIN)/pre-commit run --all-files --color never $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev ## the benchmark suite beside its floors, on Apache Kafka (ARGS=--embedded without Java and Maven)
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-peers
bench-peers: $(VENV)/.dev $(VENV)/peers/.made ## the same with FastStream, taskiq, Dramatiq, arq, procrastinate and Celery
	$(BIN)/python -m benchmarks --peers $(ARGS)

.PHONY: bench-guard
bench-guard: $(VENV)/.dev ## fails when a task costs a process or PostgreSQL 30 % more than expected (ARGS=--write: expect this)
	@$(BIN)/python -m benchmarks.guard $(ARGS)

.PHONY: bench-plots
bench-plots: $(VENV)/peers/.made ## docs/images/bench-*.png from what these two have measured (ARGS names other samples)
	$(VENV)/peers/bin/python -m benchmarks.peers.plots $(or $(ARGS),build/bench.json) docs/images

.PHONY: docs
docs: $(VENV)/.dev ## the pages that are made from the code
	@{ echo '# Settings'; echo; \
	  echo 'Settings are environment variables. A variable that is set but empty counts as unset. This page is made by'; \
	  echo '`make docs` from the classes that read them.'; echo; \
	  echo '`TASKFLUX_SECRETS_DIR` names a folder of files that set variables: `TASKFLUX_POSTGRES__DSN` in it, or in a'; \
	  echo 'folder in it, sets that variable, unless the environment does. A running process reads them again every 2 s, and'; \
	  echo 'uses renewed passwords and keys for each connection from then on ([more](operations.md#renewed-secrets)).'; echo; \
	  $(BIN)/taskflux config --reference; } > docs/settings.md
	@$(BIN)/taskflux openapi > docs/openapi.json
	@$(BIN)/python -m taskflux.cli.reference docs/observability.md

.PHONY: dashboards
dashboards: $(VENV)/.dev ## Grafana's dashboards, from charts/generate/dashboards
	@$(BIN)/python -m charts.generate.dashboards $(ARGS)

.PHONY: lock
lock: $(VENV)/.dev ## requirements/*.txt anew from pyproject.toml (ARGS=--upgrade for the newest versions)
	requirements/lock $(ARGS)

.PHONY: clean
clean: ## away with what make made; .taskflux, the data of `make run`, stays
	rm -rf $(VENV) build dist .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find handlers taskflux tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# What `make run` needs, and what working on it needs besides: the second one has all of the first.
$(VENV)/.run: requirements/local.txt requirements/build.txt pyproject.toml $(BIN)/python
	@$(BIN)/python requirements/install.py local
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml $(BIN)/python
	@$(BIN)/python requirements/install.py dev
	@touch $(VENV)/.run $@

# The peers, in an environment of their own inside of the other one.
$(VENV)/peers/.made: requirements/peers.txt requirements/build.txt $(VENV)/.dev
	@$(BIN)/python -m venv --without-pip --clear $(VENV)/peers
	@$(VENV)/peers/bin/python requirements/install.py peers
	@touch $@

# Missing, or a link to a Python that was removed.
$(BIN)/python:
	@for python in $(PYTHONS); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$python" -c 'import venv' 2>/dev/null || { \
	    echo "$$python has no venv module: install it (on Debian and Ubuntu: apt install python3-venv) and run make again" >&2; \
	    exit 1; }; \
	  exec "$$python" -m venv --without-pip --clear $(VENV); \
	done; \
	echo "TaskFlux needs Python 3.11 or newer, and none of these is one: $(PYTHONS)" >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.11 …" >&2; \
	exit 1
