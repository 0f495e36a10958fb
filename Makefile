# Everything a user or CI runs. Root is needed wherever CRIU is.

CRIU_PREFIX ?= $(CURDIR)/target/criu
PROVE ?= $(CURDIR)/target/prove
export CRIU_PREFIX

.PHONY: help setup build demo run test prove load bench lint clean

help: ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

setup: ## install what is missing: compiler, cmake, node, redis, CRIU >= 4.2 (into target/criu)
	.ci/setup

build: setup
	cargo build --release --locked

demo: build ## the whole way in two minutes: deploy, wake, sleep, usage, bill; leaves nothing behind
	.ci/demo

run: build ## the same, but stays: prints curl lines to try
	.ci/demo --stay

test: ## every test, with a short form of every measurement
	.ci/setup test
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps
	cargo test --release --locked -- --test-threads=1
	cargo bench --locked --bench wake -- --short
	.ci/demo --quiet

prove: ## the full forms of all measurements; raw samples, seed and versions into $(PROVE)
	.ci/setup test
	mkdir -p $(PROVE)
	.ci/versions > $(PROVE)/versions.txt
	EDGEPOINT_PROVE=$(PROVE) cargo test --release --locked --test real -- --test-threads=1 --nocapture
	EDGEPOINT_PROVE=$(PROVE) cargo bench --locked --bench wake
	@echo "samples are in $(PROVE)"

load: build ## wrk and oha against an awake and a parked app
	.ci/setup load
	.ci/load

bench: build ## compare our wake with the criu command line, a cold start and a running app
	cargo bench --locked --bench wake

lint:
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings

clean:
	cargo clean
