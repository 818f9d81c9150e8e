# Millrace. `make help` lists what there is to do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PACKAGES := $(wildcard libs/*/src) $(wildcard services/*/src)
T ?=
RUNS ?=
SEED ?=
ONLY ?=
LOAD_SECONDS ?=

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  \033[36m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nOne test: make test T=services/registry/tests/test_rollout.py\n'

##@ Run
.PHONY: demo up down status
demo: setup ## Carry a model through its whole life, with live progress
	@$(PYTHON) -m millrace_mesh.demo
up: setup ## Run the mesh in the foreground, with one log (Ctrl-C stops it)
	@.venv/bin/millrace up
down: ## Stop the mesh, wherever it was started from
	@if [ -x .venv/bin/millrace ]; then .venv/bin/millrace down; fi
status: setup ## Say what runs
	@.venv/bin/millrace status

##@ Develop
.PHONY: setup test check chaos rollouts bench format protos clean
setup: ## Make the two virtual environments (quick when nothing changed)
	@deploy/local/setup.sh
test: setup .venv-lm-eval/installed .venv-llm-compressor/installed ## Every check and every test; T=path runs one test alone
ifeq ($(T),)
	@$(MAKE) --no-print-directory check
	@deploy/checks/tests.sh
else
	@$(PYTHON) -m pytest $(T)
endif
check: setup checks-tools ## Lint, types, layers, contracts, sizes
	@ruff check .
	@ruff format --check .
	@mypy $(PACKAGES)
	@lint-imports
	@$(PYTHON) libs/contracts/generate.py --check
	@$(PYTHON) libs/contracts/document.py --check
	@$(PYTHON) libs/contracts/generate.py --image .millrace/contracts.binpb
	@deploy/checks/node_modules/.bin/buf lint .millrace/contracts.binpb --config protos/buf.yaml
	@deploy/checks/node_modules/.bin/buf breaking .millrace/contracts.binpb \
	  --against protos/released.binpb --config protos/buf.yaml
	@$(PYTHON) deploy/checks/sizes.py
chaos: setup ## Break everything, for long; RUNS=1000 SEED=1 ONLY=crash,nats narrow it
	@$(PYTHON) -m tests.chaos $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(ONLY),--only $(ONLY))
rollouts: setup ## Roll out good and bad versions under load; RUNS=200 of each, SEED=1
	@$(PYTHON) -m tests.rollouts $(if $(RUNS),--bad $(RUNS) --good $(RUNS)) \
	  $(if $(SEED),--seed $(SEED))
bench: setup ## How fast it is, as ratios in one run; BASELINE=commit compares, ONLY=road,proxy
	@$(PYTHON) -m tests.bench $(if $(ONLY),--only $(ONLY)) $(if $(BASELINE),--baseline $(BASELINE)) \
	  $(if $(LOAD_SECONDS),--load-seconds $(LOAD_SECONDS))
format: setup ## Format the code
	@ruff check --fix . && ruff format .
protos: setup ## Generate the contracts' code, the AsyncAPI document and the diagram
	@$(PYTHON) libs/contracts/generate.py
	@$(PYTHON) libs/contracts/document.py
release-contracts: setup ## Take the contracts as they are for what later ones must stay compatible with
	@$(PYTHON) libs/contracts/generate.py --image protos/released.binpb
clean: down ## Remove environments and state
	rm -rf .venv .venv-triton .venv-lm-eval .venv-llm-compressor .millrace deploy/checks/node_modules

.venv-lm-eval/installed: deploy/requirements/lm-eval.txt | setup
	@deploy/local/lm_eval.sh
.venv-llm-compressor/installed: deploy/requirements/llm-compressor.txt | setup
	@deploy/local/llm_compressor.sh
.PHONY: checks-tools release-contracts
checks-tools: deploy/checks/node_modules/.package-lock.json
deploy/checks/node_modules/.package-lock.json: deploy/checks/package-lock.json
	@cd deploy/checks && npm install --silent --no-audit --no-fund --omit-lockfile-registry-resolved
