# Needs Python >= 3.11 and make; everything else goes into $(VENV). `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install browser demo serve test check format bench clean wheel constraints

VENV ?= .venv
DEMO ?= .demo
# The first interpreter that is new enough; `make PYTHON=/path/to/python3 …` to choose another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
PYTEST := $(BIN)/python -m pytest

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## make the virtual environment (the other targets do it when they need it)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "No Python >= 3.11 found; say make PYTHON=/path/to/python3" >&2; exit 1; fi
ifneq ($(UV),)
	@[ -x $(BIN)/python ] || "$(UV)" venv --quiet --python "$(PYTHON)" $(VENV)
	"$(UV)" pip install --quiet --python $(BIN)/python --require-hashes -r constraints.txt
	@"$(UV)" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	@[ -x $(BIN)/python -a -x $(BIN)/pip ] || "$(PYTHON)" -m venv $(VENV) \
		|| { echo "python -m venv failed; on Debian and Ubuntu it is the package python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@touch $(STAMP)

browser:  ## npm packages for the tests in a browser, which are skipped without them (needs npm, and Chromium to run)
	@cd tests/auth/browser && npm ci --silent --omit=optional

demo: $(STAMP)  ## a server with a sample population in ./.demo, until Ctrl-C
	@exec $(BIN)/fhir-server demo --data-dir $(DEMO)

serve: $(STAMP)  ## the server on its default data directory; make serve ARGS="--port 9000"
	@exec $(BIN)/fhir-server serve $(ARGS)

test: $(STAMP)  ## the whole suite against a real MongoDB; make test ARGS="tests/cli -k load"
	@$(PYTEST) -n 2 --dist loadfile $(ARGS)

check: $(STAMP)  ## format, lint, types, layers, content, documentation: under 30 s
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports --no-logo > $(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }
	@$(BIN)/fhir-server content check
	@$(PYTEST) tests/docs
	@$(BIN)/mypy --no-error-summary
	@echo "check: format, lint, layers, content, documentation, types: all in order"

format: $(STAMP)  ## put the code into its one format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(STAMP)  ## measure, and print a table; make bench ARGS="--only read"
	@$(BIN)/python -m tests.benchmarks $(ARGS)

wheel: $(STAMP)  ## dist/*.whl, which installs and runs without the checkout
	@rm -rf dist && $(BIN)/python -m hatchling build -t wheel > /dev/null
	@ls dist/*.whl

constraints: $(STAMP)  ## pin the newest allowed versions (needs uv)
	@{ echo '# Exact versions with their hashes, made by `make constraints`; no addresses, so any index serves them.'; \
		printf 'hatchling>=1.27\neditables>=0.5\n' | "$(UV)" pip compile pyproject.toml - --group dev --universal \
		--python-version 3.11 --no-emit-index-url --no-emit-find-links --generate-hashes --no-annotate --no-header \
		--quiet; } > constraints.new && mv constraints.new constraints.txt

clean:  ## remove what the targets above made (the demo's data, too)
	rm -rf $(VENV) $(DEMO) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
