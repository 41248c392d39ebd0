# Everything a person runs; .ci/run calls the same recipes.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Where .ci/install puts what is not the machine's.
PARTS := $(abspath $(or $(SPEGEL_PARTS),$(TARGET)/parts))

.PHONY: help
help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: parts
parts: ## Install what is missing on this machine (as root)
	@.ci/install

.PHONY: chart-parts
chart-parts:
	@.ci/install chart

.PHONY: build
build: parts ## Build the spegel binary
	$(CARGO) build --release --locked -p spegel

.PHONY: demo
demo: build ## Show the main job: three nodes share an image while the registry is gone
	$(CARGO) run --locked -q -p spegel-tests --bin demo

.PHONY: test
test: test-fast test-real ## Run every test

.PHONY: test-fast
test-fast: parts ## Run the tests that need no cluster
	$(CARGO) test --locked --workspace --exclude spegel-tests

.PHONY: test-real
test-real: build chart-parts ## Run the tests on real containerd in network namespaces (as root)
	deploy/image $(TARGET)/image/spegel.tar
	$(CARGO) test --locked -p spegel-tests -- --test-threads=1

.PHONY: image
image: ARCHES ?= amd64 arm64
image: parts ## Build the OCI image without Docker, target/image/spegel.tar: make image [ARCHES="amd64 arm64"]
	deploy/image $(TARGET)/image/spegel.tar $(ARCHES)

.PHONY: chart
chart: chart-parts ## Check the chart: helm lint, helm template over many values, each object against Kubernetes' types
	$(CARGO) test --locked -p spegel-tests --test chart

.PHONY: manifest
manifest: chart-parts ## Render the manifests for those without helm from the chart: deploy/spegel.yaml, spegel-cleanup.yaml
	for name in spegel spegel-cleanup; do \
	    HELM=$(PARTS)/helm deploy/render $$name > deploy/$$name.yaml.new && mv deploy/$$name.yaml.new deploy/$$name.yaml || exit 1; \
	done

.PHONY: kubernetes
kubernetes: VERSION ?= 1.35.4
kubernetes: parts ## Install, update and uninstall on a real Kubernetes of three nodes, by the commands of docs/operating.md (as root)
	@.ci/install kubernetes $(VERSION)
	deploy/image $(TARGET)/image/spegel.tar
	$(CARGO) run --locked -q -p spegel-tests --bin kubernetes -- $(VERSION)

.PHONY: sim
sim: parts ## Replay one simulated scenario: make sim SCENARIO=... SEED=...
	$(CARGO) run --locked -q -p spegel-sim --bin spegel-sim -- $(SCENARIO) $(SEED)

.PHONY: sim-scale
sim-scale: NODES ?= 1000
sim-scale: parts ## Simulate an hour of clusters of 100, 300 and NODES nodes, and compare
	$(CARGO) run --profile scale --locked -q -p spegel-sim --bin scale -- $(NODES)

.PHONY: soak
soak: MINUTES ?= 10
soak: parts ## Simulate random clusters, or replay one that failed: make soak MINUTES=10 [SEED=...], make soak REPLAY=...
	$(CARGO) run --locked -q -p spegel-sim --bin soak -- $(if $(REPLAY),replay $(REPLAY),$(MINUTES) $(SEED))

.PHONY: fuzz
fuzz: SECONDS ?= 60
fuzz: ## Fuzz each parser and the core: make fuzz SECONDS=60 (needs Rust nightly)
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	@fuzz/run $(SECONDS)

.PHONY: bench
bench: build ## Measure bytes, requests and memory beside nginx (as root), then the core
	$(CARGO) run --locked -q -p spegel-tests --bin bench
	$(CARGO) bench --locked -p spegel-core

.PHONY: bench-core
bench-core: ## Measure what the core spends on what happens often or is large
	$(CARGO) bench --locked -p spegel-core

.PHONY: lint
lint: parts ## Check format, lints and that the core stays pure
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	.ci/core-is-pure
