.PHONY: piko demo plugins test simulation fuzz lint bench million image image-test dist package-test alerts chart programs pages chaos soak

# The program, optimised: bin/piko. Its debug information, for backtraces and perf, is beside it: bin/piko.debug
piko:
	tools/setup build
	cargo build --release --bin piko
	tools/split target/release/piko bin/piko

# A whole cluster on this machine, until Ctrl-C.
demo:
	tools/setup build
	cargo run --bin piko -- demo

# Rebuilds plugins/dist. Needs: rustup target add wasm32-unknown-unknown
plugins:
	tools/setup build
	tools/plugins

# Unit tests, the program end to end, and what of `make programs` is quick and needs nothing of PyPI or npm.
test:
	tools/setup test
	cargo test --workspace
	cd plugins && cargo test --workspace --quiet
	tools/setup programs-few
	PIKO=target/debug/piko tests/programs/run aria2 git redis-server registry rsync ssh

# The inspector's page in Chromium. SHOTS names a folder that keeps the pictures.
pages:
	tools/setup pages
	cargo build --bin piko
	tests/pages/run

# The cluster's tables and links in CLUSTER_SEEDS (10000) worlds of faults. Some minutes.
simulation:
	tools/setup build
	CLUSTER_SEEDS=$${CLUSTER_SEEDS:-10000} cargo test -p piko-cluster --test simulation

# Feeds every parser with damaged input, FUZZ_SECONDS (60) each.
fuzz:
	tools/setup build
	tools/fuzz

lint:
	tools/setup build
	tools/deny
	tools/docs
	tools/imports
	tools/embedded
	tools/comments
	cargo fmt --check
	cd plugins && cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

# Compares throughput, CPU, latency and memory; writes docs/benchmarks.md. Some fifteen minutes.
bench: piko
	tools/setup bench
	python3 tools/bench --write

# piko:latest, in the local container engine.
image:
	tools/image

# The image and docs/demo, run. Says so where no engine is.
image-test:
	tests/image/run

# Everything that is published, in dist/: docs/packaging.md.
dist:
	tools/dist

# A million mixed requests on kept connections, none of which may be lost. Some minutes.
million: piko
	tools/setup bench
	python3 tools/bench/million.py

# The Debian package in dist/, installed, started, upgraded and removed in a container.
package-test:
	tests/package/run

# deploy/alerts: syntax, tests, runbooks.
alerts:
	tools/alerts

# The Helm chart and the Kustomize base: rendered, against schemas, equal.
chart:
	tools/chart

# git, redis, gRPC and others, direct and through nodes and balancers; writes docs/compatibility.md. Some ten minutes.
programs: piko
	tools/setup programs
	tests/programs/run --write

# Faults of a running cluster, beside NGINX and HAProxy; writes docs/reliability.md. Some ten minutes; needs root.
chaos: piko
	tools/setup test
	python3 tests/faults $(if $(ONLY),--only $(ONLY),--write)

# Mixed traffic for SOAK_SECONDS (1800): is anything lost, does anything grow? Needs root.
soak: piko
	tools/setup test
	python3 tests/faults/soak.py
