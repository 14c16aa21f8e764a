# `make demo` shows SecureOverlay at work on a real cluster; `make test` is the gate. Both install what they need.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Builds outlive a checkout: a fresh clone compiles little more than our own crates.
SECUREOVERLAY_LAB_CACHE ?= $(HOME)/.cache/secureoverlay-lab
CARGO_TARGET_DIR ?= $(SECUREOVERLAY_LAB_CACHE)/target
export SECUREOVERLAY_LAB_CACHE CARGO_TARGET_DIR
# Cargo tells what is new by file times, and another checkout's builds may be newer than this one's files.
$(shell mkdir -p $(CARGO_TARGET_DIR) && [ "$$(cat $(CARGO_TARGET_DIR)/checkout 2> /dev/null)" = "$(CURDIR)" ] \
	|| { find . -name '*.rs' -not -path './target/*' -exec touch {} + && echo "$(CURDIR)" > $(CARGO_TARGET_DIR)/checkout; })

CARGO := cargo --locked
# All members at once, always: what is built for one stage has the features that the next one needs, and is built once.
LAB := cargo lab

# Seconds that each fuzz target runs in the gate; `make fuzz` has its own idea of enough.
FUZZ_SECONDS ?= 5

, := ,
stage = @printf '\n\033[1m== %s\033[0m\n' $(1)

.PHONY: help
help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: demo
demo: ## The main job on a real cluster, told step by step.
	$(CARGO) build --package secureoverlay-lab
	$(LAB) demo

# What only computes takes what the scenarios leave of the processor, but not while gaps or speed are judged. Tests that
# wait for something by a deadline do not belong here.
BESIDE := sim fuzz-gate

.PHONY: test
test: tools check packages unit kernel-tests api-tests ## The gate: lints, packages, unit tests, simulator, real kernel, real API server, every scenario.
	$(call stage,'scenarios on a real cluster$(,) and beside them: $(BESIDE)')
	$(LAB) run all --beside 'make --no-print-directory $(BESIDE)'
	$(call stage,'make test: ok')

.PHONY: test-full
test-full: tools check packages release unit kernel-tests api-tests ## The same with the long figures.
	$(call stage,'scenarios at length$(,) and beside them: $(BESIDE)')
	$(LAB) run all --full --beside 'make --no-print-directory $(BESIDE)'
	$(call stage,'MKE manifest as it is$(,) on the oldest Kubernetes that serves it')
	$(LAB) run --kubernetes 1.20 mke-manifest

.PHONY: tools
tools: # What tests need beside Rust: Python with YAML, and libFuzzer's C++.
	@/usr/bin/python3 -c 'import yaml' 2> /dev/null && command -v g++ > /dev/null \
		|| { apt-get update --quiet=2 && apt-get install --quiet=2 --yes g++ python3 python3-yaml; }

.PHONY: check
check: ## Format and lints.
	$(call stage,'format and lints')
	cargo fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- --deny warnings
	# Tests that need a kernel or an API server are no default targets.
	$(CARGO) clippy --workspace --test kernel --test guest_command --test api_server --quiet -- --deny warnings
	@sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '",' | tr ' ' '\n' | cut -d/ -f1 | sort -u \
		| while read -r member; do grep -qx "COPY $$member $$member" Containerfile \
			|| { echo "Containerfile does not copy the workspace's member $$member"; exit 1; }; done
	@sed -n '/^\[workspace.dependencies\]/,/^\[workspace.lints/s/^\([a-z0-9_-]*\) *=.*/\1/p' Cargo.toml \
		| while read -r crate; do grep -qE "[| ]$$crate[, ]" docs/dependencies.md \
			|| { echo "docs/dependencies.md does not say what $$crate is for"; exit 1; }; done
	# What decides does no I/O, and draws no random numbers by itself.
	@for crate in keyring rotation agent-core manager-core kubectl-core; do \
		! cargo tree --quiet --package secureoverlay-$$crate --edges normal --prefix none \
			| grep -E '^(tokio|kube|hyper|rustix|rand) ' || { echo "secureoverlay-$$crate can do I/O"; exit 1; }; done
	# The driver blocks on the thread that calls it: fuzz targets and the bench are built without a runtime.
	@! cargo tree --quiet --package secureoverlay-agent-kernel --edges normal --prefix none | grep -E '^(tokio|kube|hyper) ' \
		|| { echo "the driver depends on a runtime or a client for the API"; exit 1; }
	# The plugin reads no Secret: it names no crate that has the type, and no path of that name.
	@! $(CARGO) tree --quiet --package secureoverlay-kubectl --edges normal --prefix none --depth 1 \
		| grep -E '^(secureoverlay-k8s|secureoverlay-daemon|k8s-openapi) ' || { echo "the plugin can read Secrets"; exit 1; }
	# Pronouns that name no component, and words of the protocol before (CHANGELOG says what they became).
	@! git grep --line-number --ignore-case --word-regexp --extended-regexp \
		'somebody|nobody|anybody|everybody|whoever|whom|incarnations?|burnt|relent(ed)?|roster|descent|census|press-on|oversized' \
		-- '*.rs' '*.md' '*.yaml' '*.py' '*.sh' '*.toml' ':!CHANGELOG.md' || { echo "docs/architecture.md has the words"; exit 1; }
	tests/docs/check
	@grep -ohE '`(agent|common|fuzz|manager|manifests|tests)/[A-Za-z0-9_./-]+\.[a-z]+`' README.md docs/*.md docs/*/*.md | tr -d '`' \
		| sort -u | while read -r file; do test -e "$$file" || { echo "the docs name $$file, which is not there"; exit 1; }; done

.PHONY: packages
packages: tools ## Chart, kustomizations, alerts, release: the objects of the plain manifest, values that work, alerts that fire.
	$(call stage,'packages')
	helm=$$($(LAB) tool helm); kubectl=$$($(LAB) tool kubectl); tests/packages/compare.py "$$helm" "$$kubectl"
	promtool=$$($(LAB) tool promtool); tests/packages/alerts.py "$$promtool"
	programs=$$($(LAB) programs); tests/packages/release.py check "$$programs"

RELEASE := $(CARGO_TARGET_DIR)/release-artifacts
TARGET := x86_64-unknown-linux-gnu

.PHONY: release
release: tools ## What a release consists of, verified: images (OCI), plugin, manifest, SBOM (SPDX), checksums.
	$(call stage,'release')
	# With the flags of the images.
	RUSTFLAGS="$$(sed -n "s/^ENV RUSTFLAGS='\(.*\)'$$/\1/p" Containerfile)" $(CARGO) build --quiet --release --target $(TARGET) \
		--package secureoverlay-manager --package secureoverlay-agent --package secureoverlay-kubectl
	rm -rf -- "$(RELEASE)"
	tests/packages/release.py build "$(CARGO_TARGET_DIR)/$(TARGET)/release" "$(RELEASE)"

.PHONY: unit
unit: ## Unit tests: no privileges, no network.
	$(call stage,'unit tests')
	$(CARGO) test --workspace --quiet

# Steps of the simulator in the gate.
SIM_STEPS ?= 100000
# Built with a test beside it, because tests turn on features of what both depend on.
SIMULATOR := $(CARGO) build --workspace --quiet --bin secureoverlay-sim --test kernel \
	&& $(CARGO_TARGET_DIR)/debug/secureoverlay-sim

.PHONY: sim
sim: ## Simulated clusters full of faults, and wrong variants that must be noticed.
	$(call stage,'simulator')
	$(SIMULATOR) --steps $(SIM_STEPS)

.PHONY: soak
soak: ## The same without end, from seeds that were not tried before.
	$(SIMULATOR) --soak --first $$(date +%s)000

.PHONY: fuzz-gate
fuzz-gate: ## Every parser of bytes from outside, for seconds.
	$(call stage,'fuzz targets')
	fuzz/run $(FUZZ_SECONDS)

.PHONY: fuzz
fuzz: tools ## The same for ten minutes each; `fuzz/run SECONDS TARGET` for longer.
	fuzz/run 600

# The whole workspace, so that all tests are built with one set of features, once.
TEST_BINARY = $$($(CARGO) test --workspace --test $(1) --no-run 2>&1 | sed -n 's/.*(\(.*$(1)-[0-9a-f]*\)).*/\1/p')

.PHONY: kernel-tests
kernel-tests: ## The driver against a real kernel with IPsec, in a guest.
	$(call stage,'driver on a real kernel')
	$(CARGO) test --workspace --test kernel --no-run --quiet
	$(LAB) kernel -- $(call TEST_BINARY,kernel)
	$(CARGO) test --workspace --test guest_command

.PHONY: api-tests
api-tests: export SECUREOVERLAY_LAB ?= api
api-tests: ## Manager and manifests against a real API server.
	$(call stage,'real API server')
	$(CARGO) test --workspace --test api_server --no-run --quiet
	$(LAB) up --nodes 0
	status=0; $(LAB) inside $(call TEST_BINARY,api_server) || status=$$?; \
		$(LAB) down; exit $$status

.PHONY: scenarios
scenarios: ## Every scenario on a real cluster, in the short profile.
	$(call stage,'scenarios on a real cluster')
	$(LAB) run all

# How often `make flake` repeats.
N ?= 20

.PHONY: flake
flake: ## One scenario N times in one lab: make flake SCENARIO=foreign N=20
	@test -n "$(SCENARIO)" || { echo 'make flake SCENARIO=NAME [N=20]; cargo lab list names the scenarios'; exit 1; }
	$(LAB) run --times $(N) $(SCENARIO)

.PHONY: mutants
mutants: tools ## Faults planted into the product, each of which its stage of the gate must catch.
	tests/mutants/run

.PHONY: deny
deny: ## Licenses and sources of the dependencies (installs cargo-deny).
	command -v cargo-deny > /dev/null || cargo install --locked --quiet cargo-deny
	cargo deny check bans licenses sources

.PHONY: clean
clean: ## Remove the lab and everything that it cached.
	-$(LAB) down
	rm -rf -- "$(SECUREOVERLAY_LAB_CACHE)"
