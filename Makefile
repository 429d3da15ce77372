# The one interface: a developer and CI run the same targets. `make help` lists them.
#
# Everything is installed into $(VENV), nothing outside the checkout is touched.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# protoc finds its plugins, and import-linter the generated stubs, through these two.
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONDONTWRITEBYTECODE ?= 1

STUBS := services/client
# The Open Inference Protocol is kept out of protobuf's default pool, where Triton's client has the same names: of its
# protos there are only types and a descriptor set.
OIP := services/inference/wire
OIP_PROTOS := $(sort $(patsubst protos/%,%,$(wildcard protos/inference/*.proto)))
PROTOS := $(sort $(patsubst protos/%,%,$(wildcard protos/statestream/*/*/*.proto)))
SERVICE_PROTOS := $(filter %_service.proto,$(PROTOS))
TASK ?= sentiment
COMPOSE ?= docker compose

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

.PHONY: help setup demo gen gen-check docs format lint breaking type test sim sim-long parity bench chaos compose-test up down check train clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-13s %s\n", $$1, $$2 }'

# ---- setting up -----------------------------------------------------------------------------------------------------

# A stamp per extra: a second `make` installs nothing until pyproject.toml changes.
$(VENV)/.stamp-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Statestream needs Python 3.11 or later: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

setup: $(VENV)/.stamp-dev ## install all that developing needs into .venv

demo: $(VENV)/.stamp-serve ## start a server, send it a review, show the answer as the words arrive
	$(BIN)/statestream demo

# ---- generated stubs ------------------------------------------------------------------------------------------------

# generate FOLDER: the stubs of every proto; gRPC classes only for the files that declare a service.
# describe FOLDER: types and descriptor set of the Open Inference Protocol.
define generate
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -I protos --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(SERVICE_PROTOS)
endef
define describe
	$(BIN)/python -m grpc_tools.protoc -I protos --descriptor_set_out=$(1)/inference.binpb $(OIP_PROTOS)
	$(BIN)/python -m grpc_tools.protoc -I protos --mypy_out=quiet:build $(filter-out %_service.proto,$(OIP_PROTOS))
	mv build/inference/*_pb2.pyi $(1)
endef

gen: setup ## regenerate the committed stubs from the protos
	find $(STUBS)/statestream -name '*_pb2*' -not -path '*/__pycache__/*' -delete
	$(call generate,$(STUBS))
	mkdir -p build && rm -f $(OIP)/*.pyi $(OIP)/*.binpb
	$(call describe,$(OIP))

gen-check: setup ## fail where the committed stubs are not those of the protos
	@rm -rf build/gen && mkdir -p build/gen/new/oip build/gen/committed/oip
	@$(call generate,build/gen/new)
	@$(call describe,build/gen/new/oip)
	@cp $(OIP)/*.pyi $(OIP)/*.binpb build/gen/committed/oip
	@cd $(STUBS) && find statestream -name '*_pb2*' -not -path '*/__pycache__/*' -exec cp --parents {} ../../build/gen/committed \;
	@diff -r build/gen/committed build/gen/new || { echo 'The stubs are not those of the protos: run `make gen`.' >&2; exit 1; }

docs: setup ## write the tables of docs/operations.md anew from the code
	$(BIN)/python -m tests.unit.house.tables

# ---- before a commit ------------------------------------------------------------------------------------------------

format: setup ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

lint: setup gen-check ## ruff, buf, import-linter, spelling, drift of the stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint protos
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell $$(git ls-files 2>/dev/null || echo .)

# AGAINST names the revision to compare with: the newest tag, else the commit before this one. The old protos come out
# of `git archive`, so a shallow clone that holds the revision is enough.
breaking: setup ## fail where the protos break a client of the last release (AGAINST=revision)
	@against=$${AGAINST:-$$(git describe --tags --abbrev=0 2>/dev/null || git rev-parse -q --verify HEAD~1 || true)}; \
	if [ -n "$${AGAINST:-}" ]; then git cat-file -e "$$AGAINST:protos/buf.yaml"; fi; \
	if [ -z "$$against" ] || ! git cat-file -e "$$against:protos/buf.yaml" 2>/dev/null; then \
	  echo "breaking: no earlier protos to compare with"; exit 0; \
	fi; \
	rm -rf build/protos && mkdir -p build/protos; \
	git archive "$$against" protos | tar -x -C build; \
	$(BIN)/buf breaking protos --against build/protos && echo "breaking: compatible with $$against"

type: setup ## pyright, strict
	$(BIN)/pyright

test: setup ## every test that needs no container engine
	$(BIN)/pytest -m 'not compose'

sim: setup ## one seed of the simulation, with all that happens in it (SEED=7)
	$(BIN)/python -m tests.simulation $(or $(SEED),0)

sim-long: setup ## fresh seeds of the simulation on all processors, and those that fail (SEEDS=100000)
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),10000)

check: lint breaking type test ## lint, compatibility, types and tests: what CI runs

# ---- measuring and training -----------------------------------------------------------------------------------------

parity: setup ## torch = ONNX, batched = alone, chunked = whole
	$(BIN)/pytest tests/parity

bench: setup ## measure the served model and write docs/benchmarks.md
	$(BIN)/python -m tests.bench

# Runs in a network namespace of its own where the rights allow it, and then drops packets for its partitions.
SECONDS ?= 60
KILLS ?= 15
SEED ?= 1
chaos: setup ## kill, stop and cut off real servers and Redis under load (SECONDS=60 KILLS=15 SEED=1)
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --kills $(KILLS) --seed $(SEED) $(CHAOS)

train: setup ## train, export and measure the model of a task (TASK=sentiment)
	$(BIN)/python -m models.$(TASK).train

# ---- containers -----------------------------------------------------------------------------------------------------

up: ## build and start everything, and wait until it is healthy
	$(COMPOSE) up --detach --build --wait

down: ## stop everything; add `V=1` to delete the sequences and metrics as well
	$(COMPOSE) down $(if $(V),--volumes)

compose-test: setup ## start the containers, kill a replica, see that nothing is lost
	$(BIN)/pytest -m compose tests/e2e/compose

clean: ## delete what can be made again
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
