# `make check` before each commit; `make test` is what CI runs.

export CARGO_TERM_COLOR ?= auto
HOST = $(shell rustc --print host-tuple)
DENY = $(shell tests/setup --path)/cargo-deny --locked --all-features

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: run
run: ## Watch every TCP reset of this host (as root)
	cargo run --release -- run

.PHONY: demo
demo: ## Trigger one reset of each cause and verify that it is captured (as root)
	cargo run --release -- demo

.PHONY: setup
setup: ## Install what the tests need and this machine lacks (as root)
	tests/setup

.PHONY: probes
probes: ## Build the eBPF objects that the collector embeds
	tests/setup packages bpf-linker
	probes/build

.PHONY: check
check: ## Formatting, lints, tests without root, licences and advisories: minutes
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features reset-collector/kubernetes -- -D warnings
	tests/words
	tests/structure --check
	cargo test --locked --package reset-collector --package reset-collector-probes --features reset-collector/kubernetes
	cargo test --locked --package reset-collector-tests --lib --test reference --test examples
	tests/setup cargo-deny
	$(DENY) check bans licenses sources
	@if $(DENY) fetch db; then $(DENY) check --disable-fetch advisories; \
	else echo "******** advisories NOT checked: their database cannot be reached from here ********" >&2; fi

.PHONY: test
test: setup ## The whole gate: set-up, check, the probe objects rebuilt, fuzzing, and the end-to-end tests (as root)
	probes/build --check
	$(MAKE) check
	fuzz/run 60
	$(MAKE) e2e

.PHONY: e2e
e2e: ## The end-to-end tests alone, with the time that each program takes (as root)
	tests/e2e

.PHONY: static
static: ## Build the program as the Dockerfile does, and run the container tests on it (as root)
	RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_STRIP=symbols \
	  cargo build --locked --release --package reset-collector --features kubernetes --target $(HOST)
	RESET_COLLECTOR=$(CURDIR)/target/$(HOST)/release/reset-collector \
	  cargo test --locked --profile e2e --package reset-collector-tests --test image --test containers -- --include-ignored --nocapture --test-threads=1

.PHONY: bench
bench: ## Run the benchmarks (as root)
	tests/setup packages
	tests/bench/run

.PHONY: fuzz
fuzz: ## Fuzz untrusted input, a minute for each target
	fuzz/run

.PHONY: vm
vm: ## Run the scenarios on other kernels, in virtual machines
	tests/setup packages
	tests/vm/run
