# Ask First: `make demo` shows everything, `make test` checks everything, on a fresh machine with Python 3.11.
#
# Two environments: .venv is ours, .venv-label-studio is Label Studio's, because their requirements contradict each
# other. Each is complete when its file .complete is newer than what it was made from; then nothing is asked again.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
ARGS ?=
PYTEST_ARGS ?=
LOGS := build/logs

OURS := .venv/.complete
DEVELOPMENT := .venv/.complete-development
LABEL_STUDIO := .venv-label-studio/.complete
PACKAGES := uncertainty training backend askfirst benchmark

.PHONY: help demo test lint types check format env env-ls env-development clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

demo: env ## Label Studio, backend and a project with images; ARGS="..." goes to `askfirst demo`
	@exec .venv/bin/askfirst demo $(ARGS)

test: ## the whole test suite; PYTEST_ARGS="..." goes to pytest
	@$(MAKE) -s -j2 $(DEVELOPMENT) $(LABEL_STUDIO)
	.venv/bin/python -m pytest $(PYTEST_ARGS)

lint: env-development ## ruff
	.venv/bin/ruff check .

types: env-development ## mypy
	.venv/bin/mypy

check: lint types test ## lint, types and tests

format: env-development ## sort imports and mend what ruff can mend by itself
	.venv/bin/ruff check --fix .

# ------------------------------------------------------------------ environments
# Both at once: installing waits for the network and for unpacking, not for each other.
env: ## both environments, at the same time
	@{ [ -x .venv/bin/python ] && [ -x .venv-label-studio/bin/python ]; } || { $(check_python); }
	@$(MAKE) -s -j2 $(OURS) $(LABEL_STUDIO)

env-ls: $(LABEL_STUDIO) ## Label Studio's environment only

env-development: $(DEVELOPMENT) # with what tests and checks need

$(OURS): requirements.txt pyproject.toml
	@$(call install,.venv,-r requirements.txt,--no-deps -e .)
	@touch $@

$(DEVELOPMENT): requirements-dev.txt $(OURS)
	@$(call install,.venv,-r requirements-dev.txt)
	@touch $@

$(LABEL_STUDIO): requirements-label-studio.txt
	@$(call install,.venv-label-studio,-r requirements-label-studio.txt)
	@$(call fresh_database)
	@touch $@

# An empty, migrated data base, from which new demos start: Label Studio takes half a minute to make one. `version` is
# its command that migrates and does nothing else.
define fresh_database
made=build/label-studio; rm -rf $$made; mkdir -p $$made $(LOGS) .venv-label-studio/share/askfirst; \
echo ".venv-label-studio: making an empty data base"; \
env LABEL_STUDIO_BASE_DATA_DIR="$$PWD/$$made" SENTRY_DSN= FRONTEND_SENTRY_DSN= COLLECT_ANALYTICS=false \
  LATEST_VERSION_CHECK=false .venv-label-studio/bin/label-studio version > $(LOGS)/label-studio.log 2>&1 || { \
  echo 'Label Studio does not run. The last lines of $(LOGS)/label-studio.log:'; tail -n 15 $(LOGS)/label-studio.log; \
  exit 1; } >&2; \
mv $$made/label_studio.sqlite3 .venv-label-studio/share/askfirst/; rm -rf $$made
endef

# A Python that runs, of a version that the pinned packages exist for, and able to make environments.
define check_python
"$(PYTHON)" -c '' 2>/dev/null || { \
  echo 'There is no $(PYTHON). Install Python 3.11 (Debian, Ubuntu: apt install python3.11 python3.11-venv;'; \
  echo 'others: https://www.python.org/downloads/), or name another one: make PYTHON=/path/to/python3.11 ...'; \
  exit 1; } >&2; \
"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
  echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; } >&2; \
"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
  echo '$(PYTHON) cannot make environments: its modules venv and ensurepip are missing.'; \
  echo 'Debian, Ubuntu: apt install python3.11-venv'; exit 1; } >&2
endef

# $(call install,ENVIRONMENT,PIP ARGUMENTS[,SECOND PIP ARGUMENTS]): make it if need be, install, tell every ten seconds
# that something happens. The whole output of pip is in build/logs; when pip fails, its last lines are shown. `set -m`
# gives pip a process group of its own, so that all of it ends when somebody presses Ctrl-C.
define install
if ! $(1)/bin/python -m pip --version > /dev/null 2>&1; then $(check_python); fresh=yes; else fresh=; fi; \
set -m; mkdir -p $(LOGS); log=$(LOGS)/$(1).log; begun=$$SECONDS; told=0; \
echo "$(1): installing; details in $$log"; \
( [ -z "$$fresh" ] || "$(PYTHON)" -m venv --clear $(1); \
  export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1; \
  $(1)/bin/python -m pip install $(2); \
  $(if $(3),$(1)/bin/python -m pip install $(3);) \
) > $$log 2>&1 & \
job=$$!; set +m; trap 'kill -- -$$job 2>/dev/null || true' EXIT; trap 'exit 130' INT TERM HUP; \
while kill -0 $$job 2>/dev/null; do sleep 0.5; \
  if [ $$(( SECONDS - begun - told )) -ge 10 ]; then told=$$(( SECONDS - begun )); \
    doing=$$(grep -aE '^ *(Collecting|Downloading|Building|Installing|Preparing|Successfully)' $$log | tail -n 1 || true); \
    echo "$(1): $$told s, $$(echo $${doing:-making the environment} | cut -c 1-70)"; fi; \
done; \
wait $$job || { echo "$(1) could not be installed. The last lines of $$log:"; tail -n 15 $$log; exit 1; } >&2; \
echo "$(1): ready after $$(( SECONDS - begun )) s"
endef

clean: ## remove caches and build products; environments and .demo stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
