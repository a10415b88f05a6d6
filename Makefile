# Everything that is done with this project. Root on Debian 12, Rust and Go are enough: the rest is installed or built,
# what is slow to build once, into a cache outside of this folder.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build demo test matrix unit lint drift generate down

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# With one small test: the tests' own crates ask others for further features, and without any test in the selection
# cargo would build most crates a second time.
build: ## Build the binaries
	cargo build --workspace --bins --test purity

demo: ## Two migrations under traffic in a cluster on this machine: one succeeds, one rolls back by itself
	@examples/demo/run

test: ## Run all tests, also those that need PostgreSQL, S3 and the cluster
	@tests/run all

matrix: ## Run the tests that need PostgreSQL against each supported version
	@tests/run matrix

unit: ## Run the tests that need neither cluster nor server
	@tests/run unit

lint: ## Formatting, clippy, shellcheck, licences
	@tests/run lint

drift: ## Check that the generated files are up to date
	@tests/run drift

generate: build ## Write CRDs, the chart's copy of them, and the manifests
	$${CARGO_TARGET_DIR:-target}/debug/credit-migration-operator crd >target/crds.yaml
	mv target/crds.yaml crds/creditmigration.io.yaml
	tests/cluster/tools ensure
	PATH=$$(dirname "$$(tests/cluster/tools path helm)"):$$PATH charts/generate

down: ## End the cluster; nothing is left but the cache
	tests/cluster/cluster down
