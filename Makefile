# What a bare machine needs: GNU make and Python 3.11 or newer with its venv module. Everything else goes into .venv.
#
#   make demo    the main job: simulated beamline, service, worker, Tiled, rescan, report
#   make test    the tests; `make test-all` those as well that take long (marked slow)
#   make lint    ruff, pyright, import contracts
#   make bench   the figures of docs/benchmarks.md, measured on this machine
#   make torture               every fault of docs/reliability.md, many times (an hour or two)
#   make evaluate              every method beside its peers, into docs/evaluation (an hour or two)
#   make measured DATA=DIR     the methods on measured files, into docs/evaluation and docs/pictures
#
# TEST_ARGS reaches pytest (default: two processes, each file's tests in one of them).
# PIP_ARGS reaches pip, for example an index that holds the CPU build of torch.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?= --numprocesses 2 --dist loadfile
QUICK ?= -m "not slow"
SEEDS ?= 10
# Ten inclusions a map are few: intervals of regions need more maps, and a map takes a second.
REGION_SEEDS ?= 20

.PHONY: setup demo test test-all lint bench torture evaluate measured clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "inscan needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable . --group dev
	touch $@

demo: setup
	$(BIN)/inscan demo $(DEMO_ARGS)

# One thread for each process: two that share two cores spin for each other, and take twice the time.
test test-all: export OMP_NUM_THREADS ?= 1
test: setup
	$(BIN)/python -m pytest $(TEST_ARGS) $(QUICK)

test-all: setup
	$(BIN)/python -m pytest $(TEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --threads 2
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/run_all.py

# PARTS names some of them: kills network fuzz tiled resources documents scan soak.
torture: setup
	$(BIN)/python benchmarks/torture.py $(PARTS)

evaluate: setup
	for method in n2n superres subspace spectral; do \
	  $(BIN)/inscan evaluate $$method --seeds $(SEEDS) --out docs/evaluation || exit 1; done
	$(BIN)/inscan evaluate regions --seeds $(REGION_SEEDS) --out docs/evaluation

measured: setup
	@test -d "$(DATA)" || { echo "make measured: DATA=$(DATA) is no folder; name the one with the measured files"; exit 2; }
	$(BIN)/python benchmarks/measured.py $(DATA)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
