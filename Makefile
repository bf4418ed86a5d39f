.PHONY: piko test lint image

# The program, optimised: bin/piko
piko:
	tools/setup build
	cargo build --release --bin piko
	mkdir -p bin
	cp target/release/piko bin/piko

test:
	tools/setup test
	cargo test --workspace

lint:
	tools/setup build
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

image:
	docker build -f deploy/Dockerfile -t piko:latest .
