# The two commands of the README are `make compare` and `make test`: each makes the
# environment if it is missing, so that both work in a fresh clone.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
STUDY  ?= experiments/digits/study.toml
OUT    ?= results/$(notdir $(patsubst %/,%,$(dir $(STUDY))))
ARGS   ?=

# One thread a process: trials run side by side, and timings stay comparable.
export OMP_NUM_THREADS ?= 1
export TUNE_DISABLE_AUTO_CALLBACK_LOGGERS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help compare test check lint types audit bench chaos fuzz environment clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

environment: $(STAMP) ## create .venv and install the package with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (some GB, a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[compare,dev]' || { \
	  echo "hpbandster (Ray's BOHB) could not be built, perhaps for want of a C compiler."; \
	  echo "Installing everything else; the method 'bohb' will be listed as unavailable."; \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[compare-base,dev]'; }
	@touch $@

compare: $(STAMP) ## the head-to-head on handwritten digits, 3 seeds (about 5 minutes)
	$(BIN)/tune-ext compare $(STUDY) --out $(OUT) $(ARGS)

# Two processes share the files out; ARGS='-n 0 -k word' runs some tests in one.
test: $(STAMP) ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy prints how many files it saw; fewer than the package has is a failure too.
types: $(STAMP)
	@$(BIN)/mypy | tee $(VENV)/mypy.log; \
	  seen=$$(sed -n 's/^Success: no issues found in \([0-9]*\) source files*$$/\1/p' $(VENV)/mypy.log); \
	  have=$$(find tune_ext -name '*.py' | wc -l); \
	  test "$$seen" = "$$have" || { echo "mypy must succeed on all $$have files of tune_ext (saw: $$seen)"; exit 1; }

audit: $(STAMP) ## dependencies: pinned as installed, licences, known vulnerabilities
	$(BIN)/python audit/check.py

# ruff lists the files that it would read: the package has to be among them.
check: lint types audit ## ruff, mypy strict on tune_ext, dependencies, tests
	@n=$$($(BIN)/ruff check --show-files . | grep -c '/tune_ext/.*\.py$$'); have=$$(find tune_ext -name '*.py' | wc -l); \
	  test "$$n" = "$$have" || { echo "ruff read $$n of the $$have files of tune_ext"; exit 1; }
	$(MAKE) test

bench: $(STAMP) ## the speed measurements, each side by side with what it is compared to
	$(BIN)/python experiments/speed/response.py --json results/speed/response.json
	$(BIN)/python experiments/speed/trial_overhead.py --json results/speed/trial_overhead.json
	$(BIN)/python experiments/autohyper/makespan.py --out results/speed
	$(BIN)/python experiments/speed/exptest.py --json results/speed/exptest.json
	$(BIN)/python experiments/speed/simulation.py --json results/speed/simulation.json
	$(BIN)/python experiments/speed/bohb.py --json results/speed/bohb.json
	$(BIN)/python experiments/speed/hyperband.py --json results/speed/hyperband.json
	$(BIN)/python experiments/speed/plan.py --json results/speed/plan.json

fuzz: $(STAMP) ## a hundred times as many odd inputs as in the tests, others every time
	TUNE_EXT_FUZZ=100 $(BIN)/python -m pytest tests/fuzz -p no:cacheprovider --timeout 0 $(ARGS)

chaos: $(STAMP) ## every fault that we know of, injected into ours and into Ray's
	$(BIN)/python experiments/chaos/run.py $(ARGS)

clean: ## remove the environment and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
