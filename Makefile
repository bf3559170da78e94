# What a person runs here. Needs Go and make; all else is fetched.

SHELL      := /bin/bash
GO         ?= go
# What the binary and the stack say of themselves; without git it is not known.
VERSION    ?= $(or $(shell git describe --tags --match 'v*' 2>/dev/null),dev)
COMMIT     ?= $(or $(shell git describe --always --abbrev=12 --dirty --exclude '*' 2>/dev/null),unknown)
# For the Lambda: no cgo, no RPC mode, no paths of this machine, no symbols.
BUILD      := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags lambda.norpc -ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)'
FUNCTION   := ./functions/purge-tokens
TOOLS      := $(GO) tool -modfile=scripts/tools/go.mod

BENCH      := $(GO) test -run='^$$' -benchtime=1x -timeout=30m ./functions/internal/testing/bench
BENCHARGS  := -args -bootstrap=$(CURDIR)/bin/host/bootstrap -deployed=$(CURDIR)/bin/bootstrap

# The race detector needs a C compiler.
RACE       := $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race)

# Inputs for each target, a few seconds' worth. Not a time: at its end Go's own
# fuzzer, before 1.27, now and then fails with "context deadline exceeded".
FUZZTIME   ?= 2000x

.PHONY: help demo test fuzz test-sqlserver soak lint bench bench-short build local validate validate-all deploy pause resume invoke logs destroy clean update-ca version build-PurgeTokens

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: bin/host/bootstrap ## one scheduled run on this machine alone, against a throwaway PostgreSQL
	@$(GO) run ./functions/internal/testing/demo bin/host/bootstrap bin/demo.log

test: fuzz ## all tests, on a real PostgreSQL; on SQL Server too where TEST_SQLSERVER_URL is set
	@[ -n "$$TEST_SQLSERVER_URL" ] || echo 'SQL SERVER IS NOT TESTED: TEST_SQLSERVER_URL is not set; make test-sqlserver starts a server with Docker'
	@command -v faketime >/dev/null || echo "NO SERVER'S OWN CLOCK IS SET IN THE TESTS: faketime is not installed"
	$(GO) test $(RACE) -shuffle=on -parallel=16 -timeout=10m ./...

fuzz: ## throw nonsense at the parsers of events, settings and secrets; FUZZTIME=10m for long
	@mkdir -p bin; grep -ro --include='*_test.go' '^func Fuzz[A-Za-z]*' functions | sort | while IFS=: read -r file target; do \
		echo "$${target#func }, $(FUZZTIME)"; \
		$(GO) test -run='^$$' -fuzz="^$${target#func }$$" -fuzztime=$(FUZZTIME) "./$$(dirname "$$file")" >bin/fuzz.log 2>&1 || { cat bin/fuzz.log; exit 1; }; \
	done

test-sqlserver: ## what needs a SQL Server, on one that Docker starts
	@scripts/sqlserver-test.sh

soak: ## inserts, runs and faults at random for SOAK=10m; SEED=n makes the same choices again
	SOAK=$(or $(SOAK),10m) SEED=$(SEED) $(GO) test $(RACE) -v -count=1 -timeout=0 -run 'WhateverHappens' $(FUNCTION)

lint: ## what .golangci.yml says, the format of Go included; FIX=1 mends what it can
	@$(TOOLS) golangci-lint run $(if $(filter 1,$(FIX)),--fix) ./...

bench: build bin/host/bootstrap ## measure against one plain DELETE and others; writes docs/benchmarks.md
	@set -o pipefail; $(BENCH) -bench='Purge/rows=1M$$|Link' -count=9 $(BENCHARGS) | tee bin/bench.txt
	@set -o pipefail; $(BENCH) -bench=. -skip='Purge/rows=1M$$|Link' -count=6 $(BENCHARGS) | tee -a bin/bench.txt
	@scripts/benchmarks.sh bin/bench.txt

bench-short: build bin/host/bootstrap ## a little of the same, printed; judges nothing
	@$(BENCH) -short -bench=. $(BENCHARGS)

build: ## the Lambda's binary for arm64, bin/bootstrap
	GOOS=linux GOARCH=arm64 $(BUILD) -o bin/bootstrap $(FUNCTION)

local: ## the same as a command for this machine, bin/purge-tokens
	@$(BUILD) -o bin/purge-tokens $(FUNCTION)

# Where SAM wants it. SAM doesn't tell make the parameter Architecture, and the
# binary of another one fails every run: the package has both, and picks.
build-PurgeTokens:
	GOOS=linux GOARCH=arm64 $(BUILD) -o $(ARTIFACTS_DIR)/bootstrap-aarch64 $(FUNCTION)
	GOOS=linux GOARCH=amd64 $(BUILD) -o $(ARTIFACTS_DIR)/bootstrap-x86_64 $(FUNCTION)
	printf '#!/bin/sh\nexec "$$0-$$(uname -m)" "$$@"\n' >$(ARTIFACTS_DIR)/bootstrap
	chmod 755 $(ARTIFACTS_DIR)/bootstrap

version: # for scripts/deploy.sh
	@echo $(VERSION) $(COMMIT)

validate: ## template, stack, scripts and workflows, without an AWS account; needs python3
	@scripts/validate.sh

validate-all: ## the same, and what takes minutes: each parameter there and back
	@scripts/validate.sh all

deploy: ## build and deploy the stack; STAGE=dev|prod
	@scripts/deploy.sh

invoke: ## run the function now: ACTION=dry-run|check|purge DATABASES=A,B
	@scripts/invoke.sh

pause: ## switch the schedule off now, without a deployment
	@scripts/schedule.sh pause

resume: ## switch it on again
	@scripts/schedule.sh resume

logs: ## the function's log of the last hour; MINUTES=n
	@scripts/logs.sh

destroy: ## remove the stack
	@scripts/destroy.sh

update-ca: ## renew the built-in authorities of Amazon RDS; BUNDLE=file FORCE=1
	$(GO) run ./scripts/update-ca $(if $(filter 1,$(FORCE)),-force) -source='$(SOURCE)' $(BUNDLE)

clean: ## remove what was built
	rm -rf bin

# The same binary for this machine. Go knows best whether it is up to date.
.PHONY: bin/host/bootstrap
bin/host/bootstrap:
	@$(BUILD) -o $@ $(FUNCTION)
