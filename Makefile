# Needs Python 3.11 or later and make. Everything else goes into a virtual environment.
#
#   make run                        start a node
#   make test PYTHON=python3.13     run the tests in an environment of that Python

ifeq ($(origin PYTHON),command line)
VENV ?= .venv-$(notdir $(PYTHON))
endif
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed

# Arguments for the commands: make run ARGS="--data-dir /srv/log", make test ARGS="tests/cli -x"
ARGS ?=
# Processes that share the tests.
JOBS ?= 2

# A variable given on the command line would otherwise reach every recipe's environment.
unexport PYTHON VENV ARGS JOBS

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install judges run test check format proto lock bench bench-cluster clean console disk net sim mutants \
    image chart pods hostile mixed mutate

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; \
	    do printf '  make %-13s %s\n' "$$name" "$$text"; done

install: $(INSTALLED)  ## make the environment (.venv) as the lock file says

# Done again only where the lock or the project's own metadata changed.
$(INSTALLED): requirements.lock pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    python=$$(scripts/find-python.sh $(PYTHON)) && rm -rf $(VENV) && \
	    echo "Making $(VENV) with $$python" && "$$python" -m venv $(VENV); }
	@echo "Installing what requirements.lock names into $(VENV)"
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

run: install  ## start a node: data in ./data, gRPC and HTTP on 127.0.0.1:8400
	@exec $(BIN)/proglog serve $(ARGS)

# Programs that PyPI does not have. Where one cannot be had, the tests that need it say so.
judges: install
	@scripts/judges.sh $(VENV)/judges curl redis-server serf promtool=prometheus \
	    cfssl=golang-cfssl openssl

test: judges  ## run the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: install  ## lint, format, types, who imports whom, freshness of generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	PYTHON=$(BIN)/python scripts/generate.sh --check
	$(BIN)/bandit --quiet --recursive proglog --configfile pyproject.toml

audit: install  ## look for known weaknesses of the dependencies; needs a network
	@$(BIN)/python -m pip_audit --version >/dev/null 2>&1 || $(PIP) install pip-audit || { \
	    echo 'audit: skipped: pip-audit cannot be had here'; exit 0; }; \
	$(BIN)/python -m pip_audit --requirement requirements.lock --require-hashes --disable-pip

format: install  ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: install  ## generate proglog/_generated from protos/
	PYTHON=$(BIN)/python scripts/generate.sh

lock: install  ## resolve the dependencies anew, for every supported Python
	@command -v uv >/dev/null || $(PIP) install uv
	PATH="$(abspath $(BIN)):$$PATH" uv pip compile --universal --python-version 3.11 \
	    --generate-hashes --no-header --group dev --group bench pyproject.toml \
	    --output-file requirements.lock $(ARGS)
	@$(BIN)/python scripts/runtime_lock.py
	@! grep -n '://' requirements.lock || { echo 'the lock names an address' >&2; exit 1; }

bench: judges  ## measure one node, beside JetStream and Redis
	PATH="$$PATH:$(abspath $(VENV))/judges/bin" $(BIN)/python -m scripts.bench single $(ARGS)

bench-cluster: install  ## measure three nodes, and their failures
	$(BIN)/python -m scripts.bench cluster $(ARGS)

disk: install  ## run a node on disks that really fail; needs root
	@scripts/judges.sh $(VENV)/judges mkfs.btrfs=btrfs-progs
	$(BIN)/python -m pytest tests/disk $(ARGS)

console: install  ## look at the console of three nodes in Chromium
	@scripts/judges.sh $(VENV)/judges chromium-headless-shell
	$(BIN)/python -m pytest tests/console $(ARGS)

image:  ## build the container image, localhost/proglog
	@scripts/containers.sh image

chart: install  ## check the Helm chart against Kubernetes' schemas
	@scripts/helm.sh $(VENV)/judges $(BIN)/python
	$(BIN)/python -m pytest tests/chart $(ARGS)

# How many operations are done at random: make pods PROGLOG_PODS_OPERATIONS=200
pods: install  ## run what the chart renders as containers, and disturb them; needs root
	@scripts/helm.sh $(VENV)/judges $(BIN)/python
	@scripts/containers.sh image
	$(BIN)/python -m pytest tests/pods $(ARGS)

.PHONY: store
store: install  ## back a log up to a server that speaks S3
	@scripts/store.sh $(VENV)/judges $(BIN)/python
	$(BIN)/python -m pytest tests/store $(ARGS)

SECONDS ?= 60
LOSSES ?= 0.3 0.9 1.1 2 5 14 mute vanish stop bridge slow move
MINUTES ?= 4
unexport SECONDS LOSSES MINUTES FILE

sim: install  ## run simulated clusters for longer: make sim SECONDS=600
	$(BIN)/python -m tests.sim --seconds $(SECONDS) $(ARGS)

net: install  ## break the network between real nodes: make net LOSSES="2 60 stop"
	unshare --user --map-root-user --net --mount --kill-child \
	    $(BIN)/python -m tests.net $(LOSSES)

mixed: judges  ## nodes among ten stock Serf agents: grow, shrink, leave
	PROGLOG_AGENTS=10 $(BIN)/python -m pytest tests/mixed $(ARGS)

hostile: install  ## attack gossip and ports of real nodes for minutes: make hostile MINUTES=10
	$(BIN)/python -m tests.hostile --minutes $(MINUTES) $(ARGS)
	$(BIN)/python -m tests.hostile.edge --minutes $(MINUTES)

mutants: install  ## show that the simulators find faults that are put in
	$(BIN)/python tests/mutants/raft_core.py --seconds $(SECONDS)
	$(BIN)/python tests/mutants/replica.py --seconds $(SECONDS)
	$(BIN)/python tests/mutants/engine.py --seconds $(SECONDS)

mutate: install  ## change one file in every way: make mutate FILE=proglog/raft/quorum.py ARGS="--sample 20"
	$(BIN)/python tests/mutants/mutate.py $(FILE) $(ARGS)

clean:  ## remove environments and caches; never data
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
