# make dashboard    serve the dashboard on http://localhost:8501 (DIR=folder of runs, PORT=8501)
# make test         run the tests (ARGS="-k lanczos -x", WORKERS=2; as in CI: ARGS='-m "not by_hand"')
# make lint         formatting, lint and types
# make record       train and record the sample runs again
# make bench        every benchmark; `make bench-curvature` for one
#
# The environment is made by whichever comes first and again when the requirements change.

PYTHON ?= python3
DIR ?=
PORT ?= 8501
ARGS ?=
EXTRAS ?=
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: dashboard test lint format record environment bench bench-%
.DEFAULT_GOAL := dashboard

dashboard: $(INSTALLED)
	$(BIN)/streamlit run dashboard.py --server.port $(PORT) $(if $(DIR),-- "$(DIR)")

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist load $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

record: $(INSTALLED)
	$(BIN)/python -m sample_runs.record $(ARGS)

bench: bench-store bench-curvature bench-overhead bench-dashboard bench-faults

bench-%: .venv/.bench
	$(BIN)/python -m benchmarks.$* $(ARGS)

environment: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	touch $@

.venv/.bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@
