# make demo    set up, train a small Mask R-CNN on toy data, draw its predictions
# make demo-video   set up, train small video models through PySlowFast on a toy Kinetics
#                   (PYSLOWFAST_ROOT=/path/to/SlowFast, a checkout of its repository)
# make demo-own     set up, from raw folders of one's own kind to pictures of predictions
#                   (videos too with PYSLOWFAST_ROOT)
# make bench   set up, measure ours against every installed peer (BENCH="--scaling", ...;
#              PySlowFast's own MViT too with PYSLOWFAST_ROOT=/path/to/SlowFast)
# make test    set up, run the tests
# make test-matrix  the tests on other versions of Python and torch, each in an environment of its
#              own (MATRIX="3.10:2.6.0:0.21.0" for some of them: Python, torch, torchvision)
# make soak    set up, run the long fault-injection runs (SOAK="-k sizes" for some of them)
# make lint    set up, run ruff and mypy
# make docs    set up, build the site into outputs/site; a warning is an error
# make figures set up, draw the figures of the documents anew, and make their tables from the
#              results that make bench BENCH="--keep cpu" keeps
# make setup   .venv with torch, detectron2 and this package, in editable mode
# make setup-video  .venv with what the video demo needs, without detectron2
# make detectron2 VENV=/path/to/env  detectron2's Python into an environment that has none
# make clean   remove caches, outputs and datasets/toy_shapes; the .venv stays, and so do toy data
#              in DETECTRON2_DATASETS
#
# PYTHON=python3.12      the Python that .venv is made with (3.10 or newer)
# DETECTRON2=pypi        from PyPI (default): detectron2's Python alone, enough for everything here
# DETECTRON2=git         from its official repository, compiled: needs git and a C++ compiler
# DETECTRON2=none        not at all: its tests are skipped
# VENV=/path/to/env      an existing environment with everything in it: nothing is installed into
#                        it but by make detectron2 (test-matrix makes environments all the same)

PYTHON ?= python3
DETECTRON2_URL := git+https://github.com/facebookresearch/detectron2.git
OWN_VENV := $(CURDIR)/.venv
VENV := $(OWN_VENV)
BIN := $(VENV)/bin
STAMPS := $(OWN_VENV)/stamps
# What is in .venv stays there until asked otherwise.
INSTALLED := $(patsubst detectron2-%,%,$(notdir $(firstword $(wildcard $(STAMPS)/detectron2-*))))
DETECTRON2 ?= $(or $(INSTALLED),pypi)
$(if $(filter pypi git none,$(DETECTRON2)),,$(error DETECTRON2 must be pypi, git or none))
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# install-or-say: a pip command's arguments, run in .venv and no other environment.
ifeq ($(VENV),$(OWN_VENV))
READY := $(STAMPS)/package $(STAMPS)/detectron2-$(DETECTRON2)
install-or-say = $(BIN)/python -m pip install $(1)
else
READY := $(BIN)/python
install-or-say = { echo "missing in $(VENV): $(BIN)/python -m pip install $(1)"; exit 1; }
endif

.PHONY: demo demo-video demo-own bench figures test test-matrix soak lint docs setup setup-video
.PHONY: detectron2 clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python -m projects.detection.demo $(DEMO)

# Without detectron2: the video path does not need it.
demo-video: setup-video
	$(BIN)/python -m projects.video.demo $(DEMO)

demo-own: $(READY)
	$(BIN)/python -m projects.own_data.demo $(DEMO)

bench: $(READY)
	$(BIN)/python projects/benchmark/bench.py $(BENCH)

# One process per core up to two, where pytest-xdist is there; JOBS= runs all in one.
JOBS = $(shell $(BIN)/python -c 'import os, xdist; print("-n", min(os.cpu_count(), 2))' 2>/dev/null)

test: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test: $(READY)
	$(BIN)/python -m pytest -q $(JOBS) $(TEST)

# Makes its own environments.
test-matrix:
	tests/matrix.sh

soak: $(READY)
	$(BIN)/python -m pytest -q -m soak $(SOAK)

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: $(READY)
	@$(BIN)/python -c 'import mkdocs, material, mkdocstrings' 2>/dev/null || \
		$(call install-or-say,-e '.[docs]')
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

figures: $(READY)
	$(BIN)/python docs/figures.py
	$(BIN)/python -m projects.benchmark.figures

setup: $(READY)

setup-video: $(firstword $(READY))

TORCH := requirements/torch.txt
$(STAMPS)/torch: $(TORCH)
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), sys.version' || \
		{ echo "PYTHON=$(PYTHON) must be Python 3.10 or newer"; exit 1; }
	$(PYTHON) -m venv $(OWN_VENV)
	$(BIN)/python -m pip install -r $(TORCH)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/package: pyproject.toml $(STAMPS)/torch
	$(BIN)/python -m pip install -e '.[detectron2,slowfast,extract,onnx,dev]'
	@touch $@

# Changing from one source to the other must leave no file of the first behind.
SITE = $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
FORGET = rm -rf $(STAMPS)/detectron2-* "$$($(SITE))/detectron2" "$$($(SITE))/tools" \
	"$$($(SITE))"/*detectron2*.dist-info

# The wheel is for one platform and Python; only its .py files are used, so any will do.
define FROM_WHEEL
site=$$($(SITE)) && $(BIN)/python -m pip install --require-hashes --no-deps --only-binary=:all: \
	--python-version 3.10 --implementation cp --abi cp310 --platform linux_x86_64 \
	--upgrade --target "$$site" -r requirements/detectron2.txt && \
rm -f "$$site"/detectron2/_C.*
endef

$(STAMPS)/detectron2-pypi: requirements/detectron2.txt $(STAMPS)/package
	$(FORGET)
	$(FROM_WHEEL)
	@touch $@

# It puts two folders there, detectron2 and tools; somebody else's stay as they are.
detectron2: $(READY)
ifneq ($(VENV),$(OWN_VENV))
	@site=$$($(SITE)) && for name in detectron2 tools; do if [ -e "$$site/$$name" ]; then \
		echo "$$site/$$name is there already"; exit 1; fi; done
	$(FROM_WHEEL)
endif

$(STAMPS)/detectron2-git: $(STAMPS)/package
	$(FORGET)
	$(BIN)/python -m pip install --no-build-isolation --no-deps '$(DETECTRON2_URL)'
	@touch $@

$(STAMPS)/detectron2-none: $(STAMPS)/package
	$(FORGET)
	@touch $@

clean:
	rm -rf outputs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf datasets/toy_shapes
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
