# Every target does the set-up it needs by itself; what is set up already costs a tenth of a second.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo lab-up lab-down test test-unit test-kernel-6.1 check bench install uninstall clean

VENV := .venv/bin
# Tests of the lab mostly wait. The tests of one file stay together: they share a lab.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder
SCRIPTS := setup/packages setup/venv setup/install setup/uninstall setup/make-key .ci/run vagrant/provision \
	tests/kernel61/run tests/kernel61/init tests/kernel61/guest tests/lab/booted.sh

# What "sudo make" leaves in a checkout must not be in the way of the checkout's owner.
ifneq ($(shell id -u),$(shell stat --format %u .))
export MYPY_CACHE_DIR := /dev/null
export PYTHONDONTWRITEBYTECODE := 1
export RUFF_NO_CACHE := true
endif

define need_root
@[ "$$(id -u)" -eq 0 ] || { echo "make $@ needs root: run 'sudo make $@'" >&2; exit 1; }
endef

define set_up
@setup/packages
@setup/venv
@$(VENV)/python bpf/build.py
endef

define set_up_unprivileged
@setup/packages run build check
@setup/venv
@$(VENV)/python bpf/build.py
endef

help: ## this list
	@sed -n 's/^\([a-z0-9.-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  %-16s %s\n", $$1, $$2 }'

setup: ## Debian packages and .venv (root, unless the packages are there)
	$(set_up)

demo: ## shows in a minute what this does, in network namespaces (root)
	$(need_root)
	$(set_up)
	@$(VENV)/python -m lab.demo

lab-up: ## client, router, balancer and three nodes to try things in (root)
	$(need_root)
	$(set_up)
	@$(VENV)/python -m lab up

lab-down: ## takes the lab away (root)
	$(need_root)
	$(set_up)
	@$(VENV)/python -m lab down

test: ## all tests (root)
	$(need_root)
	$(set_up)
	@$(VENV)/python -m pytest -p no:cacheprovider $(SIDE_BY_SIDE)

test-unit: ## the tests that need no root
	$(set_up_unprivileged)
	@$(VENV)/python -m pytest -p no:cacheprovider $(SIDE_BY_SIDE) -m "not root"

test-kernel-6.1: ## demo and conformance suite on eBPF under Debian's Linux 6.1, in QEMU (root, fetches 70 MB once)
	$(need_root)
	@setup/packages run build check lab linux61
	@setup/venv
	@$(VENV)/python bpf/build.py
	@tests/kernel61/run bash -ec '$(VENV)/python -m lab.demo --engine ebpf; \
		$(VENV)/python -m pytest -p no:cacheprovider tests/conformance'

check: ## ruff, mypy, shellcheck, import rules, generated files, structs of C and Python
	$(set_up_unprivileged)
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	shellcheck $(SCRIPTS)
	$(VENV)/python -m docs.generate --check
	$(VENV)/python -m bpf.generate --check
	$(VENV)/python -m pytest -p no:cacheprovider -q tests/unit/test_imports.py tests/unit/bpf/test_abi.py

bench: ## measures the balancer against direct connections, side by side (root)
	$(need_root)
	$(set_up)
	@$(VENV)/python -m bench

install: ## balancer, packetbridge and l3dsr into /opt/l3dsr and /usr/local/bin, units, examples, a key (root)
	@setup/packages run build
	@setup/install

uninstall: ## takes all of that away but key and configuration (root)
	@setup/uninstall

clean: ## removes .venv and all caches
	@rm -rf .venv common/bpf/built .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
