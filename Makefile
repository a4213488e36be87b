# What a newcomer types; set-up is in tools/setup_env.py.
PYTHON    ?= python3
OPENMMLAB ?= openmmlab
VENV      ?= $(if $(filter openmmlab,$(OPENMMLAB)),.venv,.venv-$(OPENMMLAB))
TORCH     ?= 2.13.0
PY        := $(VENV)/bin/python

.PHONY: help setup test lint demo demo-det data docs clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       train and evaluate a pruned segmentor on sample data, time it against dense, write a report'
	@echo 'make demo-det   the same for a Mask R-CNN'
	@echo 'make test       lint and every test'
	@echo 'make lint       ruff, mypy, and whether Python 3.8 and PyTorch 2.1 have what is used'
	@echo 'make data       write the sample data to data/sample'
	@echo 'make setup      the environment that all of the above make first when it is missing'
	@echo 'make docs       the documentation as a site, in site/, from an environment of its own (Python 3.10 or newer)'
	@echo 'make clean      remove caches and build products (not $(VENV), data or work_dirs)'
	@echo 'settings: PYTHON=$(PYTHON) (3.8 to 3.12) VENV=$(VENV) TORCH=$(TORCH) OPENMMLAB=$(OPENMMLAB) (or onedl)'

setup:
	@$(PYTHON) -c 'from __future__ import annotations' 2>/dev/null || \
	  { echo "set-up: PYTHON=$(PYTHON) does not run or is too old; valid: Python 3.8 to 3.12" >&2; exit 2; }
	@$(PYTHON) tools/setup_env.py --venv '$(VENV)' --torch '$(TORCH)' --openmmlab '$(OPENMMLAB)'

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/vermin --quiet --no-tips --target=3.8- --violations cropr_mm tools tests setup.py
	$(PY) tests/floor.py

test: lint
	$(PY) -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

# The requirements are the extra `docs` of setup.cfg, without the package itself and so without torch.
DOCS := .venv-docs
$(DOCS)/requirements.txt: setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else 1)' || \
	  { echo "docs: PYTHON=$(PYTHON) is too old; valid: Python 3.10 or newer" >&2; exit 2; }
	$(PYTHON) -m venv $(DOCS)
	$(PYTHON) -c 'import configparser as c; p = c.ConfigParser(); p.read("setup.cfg"); print(p["options.extras_require"]["docs"])' > $@.new
	$(DOCS)/bin/python -m pip install --quiet -r $@.new
	mv $@.new $@

docs: $(DOCS)/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict
	@echo 'site/index.html is the front page'

demo: CONFIG := configs/sample/fcn_cropr-vit_sample.py
demo-det: CONFIG := configs/sample/mask-rcnn_cropr-vit_sample.py
demo demo-det: data
	$(PY) tools/train.py $(CONFIG) --work-dir work_dirs/$@/train
	$(PY) tools/benchmark.py --config $(CONFIG) --checkpoint $$(cat work_dirs/$@/train/last_checkpoint) --whole-model --variants dense cropr --batch-size 16
	$(PY) tools/visualize_tokens.py $(CONFIG) $$(cat work_dirs/$@/train/last_checkpoint) --out work_dirs/$@/tokens.png
	$(PY) tools/report.py $(CONFIG) $$(cat work_dirs/$@/train/last_checkpoint) work_dirs/$@/report.html --images 6 --evaluate 50 --batch-size 16 --rounds 3

data: setup
	$(PY) tools/make_sample_data.py data/sample

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find cropr_mm tests tools configs docs -name __pycache__ -prune -exec rm -rf {} +
