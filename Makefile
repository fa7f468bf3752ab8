# Everything works from nothing in a fresh clone: the environment is made in .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
READY := .venv/.ready
DOCS := .venv/.docs
# Python compiles what it imports, which is a small part of what is installed.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Two threads on a busy two-core machine wait for each other; one per process does not.
ONE_THREAD := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
# Tests of a file share what they set up; files of few long tests are not to come last.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow coverage mutation lint types bench notebooks docs clean

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv/: 2 to 3 minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e '.[joblib]'
	touch $(INSTALLED)

$(READY): $(INSTALLED)
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps adaptive-terrain-diffusion
	touch $(READY)

demo: $(INSTALLED)
	@$(ONE_THREAD) $(BIN)/dmqbench +sweeps=demo hydra/launcher=joblib > /dev/null
	@$(BIN)/dmqbench-report
	@echo
	@echo "Try next:"
	@echo "  $(BIN)/dmqbench bits=w3a4            rounding at other bits"
	@echo "  $(BIN)/dmqbench task=anatomy         what makes the model hard to quantize"
	@echo "  $(BIN)/dmqbench-doctor               what this machine can run"

test: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not gpu and not network'

test-slow: $(READY)
	PROPERTY_EXAMPLES=2000 $(ONE_THREAD) $(BIN)/python -m pytest $(PARALLEL) --timeout 7200 \
		-m '(slow or hypothesis) and not gpu and not network'

coverage: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not gpu and not network' --cov --cov-report=term:skip-covered

# At least 85 % of the mutants are to be killed; pyproject.toml says which there are.
mutation: $(READY)
	$(ONE_THREAD) $(BIN)/mutmut run
	@$(BIN)/mutmut export-cicd-stats > /dev/null
	@$(BIN)/python -c 'import json, sys; found = json.load(open("mutants/mutmut-cicd-stats.json")); \
		share = (found["killed"] + found["timeout"]) / found["total"]; \
		print(f"{share:.1%} of", found["total"], "mutants killed"); sys.exit(share < 0.85)'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	$(BIN)/python -m benchmarks

notebooks: $(READY)
	$(ONE_THREAD) $(BIN)/python tests/notebooks/execution.py

$(DOCS): $(READY)
	$(INSTALL) -e '.[docs]'
	touch $(DOCS)

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site: site/index.html"

clean:
	rm -rf .venv build dist site mutants
