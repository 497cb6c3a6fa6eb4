# Every target makes its own .venv and installs what it needs; the second time there is nothing to install.

PYTHON ?= python3
DEMO ?= demo

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TYPED := build/typed

.DEFAULT_GOAL := help
.PHONY: help demo test check types docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Train, export, quantise, run and time a detector on synthetic plates (into demo/)
	@$(BIN)/edge-ad demo -o $(DEMO)

test: $(INSTALLED) ## Run all tests; EDGE_AD_DATA=DIR adds those on real images
	@$(BIN)/pytest -n auto --dist loadfile

check: $(INSTALLED) ## Check style, types, who imports whom, and that docs/cli.md and docs/api.md are fresh
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(MAKE) --no-print-directory types
	@$(BIN)/pytest tests/test_imports.py tests/test_generated_pages.py

docs: $(INSTALLED) ## Write docs/cli.md, docs/api.md and the tables of docs/results.md and docs/performance.md
	@$(BIN)/python docs/generate_cli.py
	@$(BIN)/python docs/generate_api.py
	@$(BIN)/python docs/generate_results.py

clean: ## Remove everything these targets made
	@rm -rf $(VENV) $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# exporters/ and benchmarks/ are installed as edge_ad.exporters and edge_ad.benchmarks (setup.cfg); mypy knows nothing of
# that mapping, so it reads a tree of links that looks like the installed package.
types: $(INSTALLED)
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/edge_ad
	@ln -s $(addprefix $(CURDIR)/,$(wildcard edge_ad/*) exporters benchmarks) $(TYPED)/edge_ad/
	@MYPYPATH=$(TYPED) $(BIN)/mypy -p edge_ad

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@echo "installing edge-ad[train,dev] into $(VENV): CPU-only PyTorch, about 2 GB, a minute or two" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@
