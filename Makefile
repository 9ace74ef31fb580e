# Tools run by `.venv/bin/python`, never by their own first line, so that a moved checkout goes on working.

PY := .venv/bin/python
ARGS :=
PY36_SOURCES := $(shell find docker/inference_server docker/jetson_inference_server -name '*.py' 2>/dev/null)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup run test lint format format-check types imports check bench monitor monitoring-configmaps lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r target does; do \
		printf '%-24s %s\n' "$$target" "$$does"; \
	done
	@echo 'ARGS="..." goes to the program: make run ARGS="--duration 20 --seed 7", make test ARGS="-k topsis".'

# installed.lock is a copy of the lock that was installed to the end; a half-made .venv has none.
setup: ## make .venv and install what requirements.lock names (up to date: does nothing)
	@set -eu; \
	if cmp -s requirements.lock .venv/installed.lock && $(PY) -c '' 2>/dev/null; then exit 0; fi; \
	supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; \
	if ! $(PY) -c "import pip; $$supported" 2>/dev/null; then \
		found=; \
		for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
			if "$$candidate" -c "$$supported" 2>/dev/null; then found=$$candidate; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo 'setup: no Python 3.11, 3.12 or 3.13 found: install one (apt install python3 python3-venv) or name one (make setup PYTHON=/path/to/python3.12)' >&2; \
			exit 1; \
		fi; \
		if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "setup: $$found cannot make a virtual environment: apt install $${found##*/}-venv" >&2; \
			exit 1; \
		fi; \
		echo "setup: making .venv with $$found ($$("$$found" --version))"; \
		"$$found" -m venv --clear .venv; \
	fi; \
	echo "setup: installing $$(grep -c '==' requirements.lock) packages from requirements.lock (a minute or two)"; \
	cp requirements.lock .venv/wanted.lock; \
	$(PY) -m pip install -qq --disable-pip-version-check --no-input --only-binary :all: --require-hashes -r .venv/wanted.lock; \
	mv .venv/wanted.lock .venv/installed.lock; \
	echo 'setup: done'

run: setup ## run one experiment of 60 s
	@exec $(PY) main_pregenerated.py --duration 60 $(ARGS)

test: setup ## run the tests, two files at a time (one: ARGS="-n 0")
	@echo 'test: pytest'
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

lint: setup ## ruff check, and Python 3.6 syntax where a Jetson Nano needs it
	@echo 'lint: ruff check'
	@$(PY) -m ruff check --quiet .
ifneq ($(PY36_SOURCES),)
	@echo 'lint: vermin (Python 3.6)'
	@$(PY) .venv/bin/vermin --quiet --no-tips --violations --target=3.6- $(PY36_SOURCES)
endif

format: setup ## ruff format (writes)
	@$(PY) -m ruff format .

format-check: setup
	@echo 'format: ruff format --check'
	@$(PY) -m ruff format --quiet --check .

types: setup ## mypy
	@echo 'types: mypy'
	@$(PY) -m mypy

imports: setup ## tach: import directions
	@echo 'imports: tach check'
	@$(PY) -m tach check

check: lint format-check types imports test ## lint, format, types, imports and tests: what CI runs

bench: setup ## run the benchmarks
	@exec $(PY) -m benchmarks $(ARGS)

monitor: setup ## run a local Prometheus that scrapes the emulated nodes and the harness (ARGS="--port 9091")
	@exec $(PY) -m monitoring.local.stack $(ARGS)

monitoring-configmaps: setup ## put rules and dashboards into their ConfigMaps (only look: ARGS=--check)
	@$(PY) monitoring/embed.py $(ARGS)

lock: setup ## make requirements.lock from pyproject.toml (newer versions: ARGS=--upgrade)
	@$(PY) -m uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --no-config --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
		--quiet --output-file requirements.lock $(ARGS)
	@if grep -nE '://|^ *--(index|extra-index|find-links)' requirements.lock; then \
		echo 'lock: requirements.lock names an index of this machine; do not commit it' >&2; exit 1; \
	fi
	@echo "lock: $$(grep -c '==' requirements.lock) packages in requirements.lock"

clean: ## remove caches (.venv and results/ stay)
	@rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .tach .benchmarks .coverage htmlcov
	@find . \( -path ./.venv -o -path ./.git -o -path ./results \) -prune -o -type d -name __pycache__ -exec rm -rf {} +
