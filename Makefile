# make demo    build .venv if needed, simulate the demo target, reconstruct its membranes
# make test    build .venv if needed, run the tests in serial and under MPI
# Python 3.12 or newer is found by itself; PYTHON=/path/to/python chooses one.

VENV      := .venv
BIN       := $(VENV)/bin
STAMP     := $(VENV)/.complete
EXTRAS    := solver,mesh,plot,dipy,report,dev,docs
MPI_RANKS := 2 3 4
# what 3 and 4 ranks run: on two cores they are slow, so mesh, engines and gradients only
CORE_TESTS := $(addprefix tests/test_,mesh_distributed.py matrix_formalism.py time_stepping.py \
              adjoint.py priors.py)
PYTEST_ARGS :=

# One BLAS thread per rank; a foreign PYTHONPATH would shadow the environment's packages.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: help env demo test published-sphere docs lint typecheck clean
.DEFAULT_GOAL := help

help:
	@echo "make demo              simulate and reconstruct the demo sphere into results/sphere"
	@echo "make test              the test suite, in serial and with $(MPI_RANKS) MPI ranks"
	@echo "make published-sphere  reconstruct the published benchmark's sphere"
	@echo "make env               only build $(VENV)"
	@echo "make docs              the pages, into docs/_build/html"
	@echo "make lint              ruff"
	@echo "make typecheck         mypy"
	@echo "make clean             remove $(VENV), caches and builds (results/ stays)"

env: $(STAMP)

# $(call works,PYTHON): prints the real path of an interpreter that can build the environment.
# It is run, not only looked up: a version manager's shim may exist and fail.
define PROBE
import sys
if sys.version_info < (3, 12): sys.exit("older than 3.12")
import os, sysconfig
if sysconfig.get_config_var("Py_GIL_DISABLED"): sys.exit("a free-threaded build")
try: import venv, ensurepip
except ImportError: sys.exit("has no venv module (Debian and Ubuntu: apt install python3-venv)")
header = os.path.join(sysconfig.get_path("include"), "Python.h")
if not os.path.exists(header):
    sys.exit("has no Python.h (Debian and Ubuntu: apt install python3-dev)")
print(sys.executable)
endef
export PROBE

$(STAMP): pyproject.toml
	@case "$$(uname -s)-$$(uname -m)" in Linux-x86_64) ;; *) \
	    echo "The DOLFINx wheel is for Linux on x86_64 only. Here use conda:" >&2; \
	    echo "  conda env create -f environment.yml && conda activate spinverse" >&2; exit 1;; esac
	@command -v cc >/dev/null || command -v gcc >/dev/null || { \
	    echo "No C compiler: DOLFINx compiles its forms when they are used." >&2; \
	    echo "Install one (Debian and Ubuntu: apt install build-essential)." >&2; exit 1; }
	@found=; tried=; \
	pyenv="$${PYENV_ROOT:-$$HOME/.pyenv}/versions"; \
	if [ -n "$(PYTHON)" ]; then candidates="$(PYTHON)"; else \
	    candidates="python3.12 python3.13 python3.14 python3 python"; \
	    for minor in 12 13 14; do for path in "$$pyenv"/3.$$minor*/bin/python3.$$minor; do \
	        [ -x "$$path" ] && candidates="$$candidates $$path"; done; done; fi; \
	for candidate in $$candidates; do \
	    command -v "$$candidate" >/dev/null 2>&1 || continue; \
	    if answer=$$("$$candidate" -c "$$PROBE" 2>&1); then found=$$answer; break; fi; \
	    tried="$$tried\n  $$candidate: $$(printf '%s\n' "$$answer" | head -n 1)"; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No usable Python 3.12 or newer was found." >&2; \
	    [ -z "$$tried" ] || printf "Tried:%b\n" "$$tried" >&2; \
	    echo "Install one and run make again:" >&2; \
	    echo "  Ubuntu 24.04 or Debian 13: apt install python3-venv python3-dev" >&2; \
	    echo "  pyenv: pyenv install 3.12" >&2; \
	    echo "or name one: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),env)" >&2; \
	    echo "or use conda: conda env create -f environment.yml" >&2; exit 1; fi; \
	echo "Building $(VENV) with $$found (a minute or two) ..."; \
	if [ -L $(VENV) ]; then \
	    echo "$(VENV) is a link: building there would empty somebody's environment." >&2; \
	    echo "Remove the link, or make VENV=another_folder" >&2; exit 1; fi; \
	"$$found" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@$(BIN)/python -c "import spinverse._stack as s; print(s.load_stack().describe())"
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m spinverse simulate demos/sphere_simulate.yaml --force \
	    -o results/sphere/target
	@$(BIN)/python -m spinverse reconstruct demos/sphere_reconstruct.yaml --force \
	    -o results/sphere/reconstruction

published-sphere: $(STAMP)
	@test -f ../shared/benchmark/018_sphere_10r_in_grid_20x20.npz || { \
	    echo "../shared/benchmark/018_sphere_10r_in_grid_20x20.npz is not there: the published" >&2; \
	    echo "meshes are no part of this project; put the folder shared beside it." >&2; exit 1; }
	@$(BIN)/python -m spinverse simulate demos/published_sphere_simulate.yaml --force \
	    -o results/published_sphere/target
	@$(BIN)/python -m spinverse reconstruct demos/published_sphere_reconstruct.yaml --force \
	    -o results/published_sphere/reconstruction

test: $(STAMP)
	@$(BIN)/python tests/run_all.py --ranks $(MPI_RANKS) --core $(CORE_TESTS) -- $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

typecheck: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist docs/_build
	find spinverse tests -name __pycache__ -type d -prune -exec rm -rf {} +
