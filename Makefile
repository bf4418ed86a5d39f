.PHONY: piko demo plugins test fuzz lint bench image

# The program, optimised: bin/piko
piko:
	tools/setup build
	cargo build --release --bin piko
	mkdir -p bin
	# Not cp: the old one may be running.
	install -m 755 target/release/piko bin/piko

# A whole cluster on this machine, until Ctrl-C.
demo:
	tools/setup build
	cargo run --bin piko -- demo

# Rebuilds plugins/dist. Needs: rustup target add wasm32-unknown-unknown
plugins:
	tools/setup build
	tools/plugins

test:
	tools/setup test
	cargo test --workspace
	cd plugins && cargo test --workspace --quiet

# Feeds every parser with damaged input, FUZZ_SECONDS (60) each.
fuzz:
	tools/setup build
	tools/fuzz

lint:
	tools/setup build
	tools/deny
	cargo fmt --check
	cd plugins && cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

# Compares throughput, CPU, latency and memory; writes docs/benchmarks.md. Some four minutes.
bench: piko
	tools/setup bench
	tools/bench --write

image:
	docker build -f deploy/Dockerfile -t piko:latest .
