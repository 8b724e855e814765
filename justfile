# What one types every day. CI runs `.ci/run`, which does the same and more.

# Lists the recipes.
default:
    @just --list

# Everything in one process: broker, load, server.
demo *args:
    cargo run --release -- demo {{args}}

# The server, by default with the settings of viewledger.toml.
serve config="viewledger.toml":
    cargo run --release -- serve --config {{config}}

# Format and lints.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# All tests; no service, no network.
test *args:
    cargo test --workspace --locked {{args}}

# The crash test with as many kills as you like.
crash crashes="500":
    CRASHES={{crashes}} cargo test --locked --test crash -- --nocapture

# Speed, as ratios against peers in the same run.
bench *args:
    cargo bench {{args}}

# Licences, sources and advisories of the dependencies.
deny:
    cargo deny check

# What CI runs.
ci:
    .ci/run
