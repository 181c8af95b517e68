# What one does with this repository. `make test` is what CI runs.

export CARGO_TERM_COLOR ?= auto
HOST = $(shell rustc --print host-tuple)
DENY = $(shell tests/setup --path)/cargo-deny --locked --all-features

.PHONY: help
help: ## Say what there is
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: run
run: ## See every reset of this host, told why (as root)
	cargo run --release -- run

.PHONY: demo
demo: ## Make resets of each cause and see them captured (as root)
	cargo run --release -- demo

.PHONY: setup
setup: ## Install what the tests need and this machine lacks (as root)
	tests/setup

.PHONY: probes
probes: ## Build the eBPF object that the collector embeds
	tests/setup packages bpf-linker
	probes/build

.PHONY: check
check: ## Formatting, lints, unit tests, licences and advisories
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features reset-collector/kubernetes -- -D warnings
	cargo test --locked --package reset-collector --package reset-collector-probes --features reset-collector/kubernetes
	tests/setup cargo-deny
	$(DENY) check bans licenses sources
	@if $(DENY) fetch db; then $(DENY) check --disable-fetch advisories; \
	else echo "******** advisories NOT checked: their database cannot be reached from here ********" >&2; fi

.PHONY: test
test: setup ## Everything: set-up, check, the probe object rebuilt, fuzzing, and the tests end to end (as root)
	probes/build --check
	$(MAKE) check
	fuzz/run 60
	$(MAKE) e2e

.PHONY: e2e
e2e: ## The tests end to end alone (as root)
	cargo test --locked --profile e2e --package reset-collector-tests -- --nocapture --test-threads=1

.PHONY: static
static: ## The program as the Dockerfile builds it, and the tests of containers on it (as root)
	RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_STRIP=symbols \
	  cargo build --locked --release --package reset-collector --features kubernetes --target $(HOST)
	RESET_COLLECTOR=$(CURDIR)/target/$(HOST)/release/reset-collector \
	  cargo test --locked --profile e2e --package reset-collector-tests --test image --test containers -- --nocapture --test-threads=1

.PHONY: bench
bench: ## Measure: figures, no verdicts (as root)
	tests/setup packages
	tests/bench/run

.PHONY: fuzz
fuzz: ## Fuzz what strangers send, a minute for each target
	fuzz/run

.PHONY: vm
vm: ## The scenarios on other kernels, in virtual machines
	tests/setup packages
	tests/vm/run
