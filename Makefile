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
GORELEASER  = COMMIT=$(COMMIT) COMMIT_TIME=$(shell git log -1 --format=%ct) SNAPSHOT=$(patsubst v%,%,$(subst dev,v0.0.0-dev,$(VERSION))) \
              $(GO) tool -modfile=scripts/tools/release/go.mod goreleaser release --clean

BENCH      := $(GO) test -run='^$$' -benchtime=1x -timeout=30m ./functions/internal/testing/bench
# The API is measured with the server's files in memory, where that can be had.
MEMORY     := $(firstword $(wildcard /dev/shm) $(TMPDIR) /tmp)
BENCHARGS  := -args -bootstrap=$(CURDIR)/bin/host/bootstrap -deployed=$(CURDIR)/bin/bootstrap

# The race detector needs a C compiler.
RACE       := $(if $(filter 1,$(shell $(GO) env CGO_ENABLED 2>/dev/null)),-race)

# Inputs for each target, a few seconds' worth. Not a time: at its end Go's own
# fuzzer, before 1.27, now and then fails with "context deadline exceeded".
FUZZTIME   ?= 2000x

# Which Go is needed says go.mod.
WANTED_GO  := $(lastword $(shell grep '^go ' go.mod))

.PHONY: need-go release publish cut help demo test fuzz test-sqlserver soak lint bench bench-sqlserver bench-short build local validate validate-all deploy pause resume invoke logs destroy clean update-ca version build-PurgeTokens

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: need-go bin/host/bootstrap ## two scheduled runs on this machine alone, against a throwaway PostgreSQL
	@$(GO) run ./functions/internal/testing/demo bin/host/bootstrap bin/demo.log

test: need-go fuzz ## all tests, on a real PostgreSQL; on SQL Server too where TEST_SQLSERVER_URL is set
	@[ -n "$$TEST_SQLSERVER_URL" ] || echo 'SQL SERVER IS NOT TESTED: TEST_SQLSERVER_URL is not set; make test-sqlserver starts a server with Docker'
	@command -v faketime >/dev/null || echo "NO SERVER'S OWN CLOCK IS SET IN THE TESTS: faketime is not installed"
	@command -v git >/dev/null || echo 'NO RELEASE IS CUT IN THE TESTS: git is not installed'
	@[ -e .venv/snippets/bin/python ] || echo 'THE STACK IS TESTED IN PART: what tests it is not installed; make validate installs that and tests all of it'
	$(GO) test $(RACE) -shuffle=on -parallel=16 -timeout=1h ./...

fuzz: need-go ## throw nonsense at the parsers of events, settings and secrets; FUZZTIME=10m for long
	@mkdir -p bin; grep -ro --include='*_test.go' '^func Fuzz[A-Za-z]*' functions | sort | while IFS=: read -r file target; do \
		echo "$${target#func }, $(FUZZTIME)"; \
		$(GO) test -run='^$$' -fuzz="^$${target#func }$$" -fuzztime=$(FUZZTIME) "./$$(dirname "$$file")" >bin/fuzz.log 2>&1 || { cat bin/fuzz.log; exit 1; }; \
	done

test-sqlserver: need-go ## what needs a SQL Server, on one that Docker starts
	@scripts/sqlserver-test.sh

soak: need-go ## inserts, runs and faults at random for SOAK=10m; SEED=n makes the same choices again
	SOAK=$(or $(SOAK),10m) SEED=$(SEED) $(GO) test $(RACE) -v -count=1 -timeout=0 -run 'WhateverHappens' $(FUNCTION)

lint: need-go ## what .golangci.yml says, the format of Go included; FIX=1 mends what it can
	@$(TOOLS) golangci-lint run $(if $(filter 1,$(FIX)),--fix) ./...

bench: need-go build bin/host/bootstrap ## measure against one plain DELETE and others; writes docs/benchmarks.md
	@set -o pipefail; $(BENCH) -bench='Purge/rows=1M$$|Link' -count=9 $(BENCHARGS) | tee bin/bench.txt
	@set -o pipefail; TMPDIR=$(MEMORY) $(BENCH) -bench=API -count=9 $(BENCHARGS) | tee -a bin/bench.txt
	@set -o pipefail; $(BENCH) -bench=. -skip='Purge/rows=1M$$|Link|API' -count=6 $(BENCHARGS) | tee -a bin/bench.txt
	@scripts/benchmarks.sh bin/bench.txt

bench-sqlserver: need-go build bin/host/bootstrap ## measure on the T-SQL server of TEST_SQLSERVER_URL alone; prints
	@$(BENCH) -bench=SQLServer -count=6 $(BENCHARGS)

bench-short: need-go build bin/host/bootstrap ## a little of the same, printed; judges nothing
	@$(BENCH) -short -bench=. $(BENCHARGS)

build: need-go ## the Lambda's binary for arm64, bin/bootstrap
	GOOS=linux GOARCH=arm64 $(BUILD) -o bin/bootstrap $(FUNCTION)

local: need-go ## the same as a command for this machine, bin/purge-tokens
	@$(BUILD) -o bin/purge-tokens $(FUNCTION)

# Where SAM wants it. SAM doesn't tell make the parameter Architecture, and the
# binary of another one fails every run: the package has both, and picks.
build-PurgeTokens: need-go
	GOOS=linux GOARCH=arm64 $(BUILD) -o $(ARTIFACTS_DIR)/bootstrap-aarch64 $(FUNCTION)
	GOOS=linux GOARCH=amd64 $(BUILD) -o $(ARTIFACTS_DIR)/bootstrap-x86_64 $(FUNCTION)
	printf '#!/bin/sh\nexec "$$0-$$(uname -m)" "$$@"\n' >$(ARTIFACTS_DIR)/bootstrap
	chmod 755 $(ARTIFACTS_DIR)/bootstrap

version: # for scripts/deploy.sh
	@echo $(VERSION) $(COMMIT)

validate: need-go ## template, stack, scripts and workflows, without an AWS account; needs python3
	@scripts/validate.sh

validate-all: need-go ## the same, and what takes minutes: each parameter there and back
	@scripts/validate.sh all

deploy: need-go ## build and deploy the stack; STAGE=dev|prod
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

update-ca: need-go ## renew the built-in authorities of Amazon RDS; BUNDLE=file FORCE=1
	$(GO) run ./scripts/update-ca $(if $(filter 1,$(FORCE)),-force) -source='$(SOURCE)' $(BUNDLE)

release: need-go ## what a release consists of, in dist/, without publishing it; and its tests
	$(GORELEASER) --snapshot
	cp bin/release/* dist/
	DIST=$(CURDIR)/dist $(GO) test -count=1 -run='^TestRelease' ./functions/internal/testing/stack

publish: need-go # for the workflow of a tag
	@mkdir -p bin
	scripts/notes.sh $(patsubst v%,%,$(VERSION)) >bin/notes.md && [ -s bin/notes.md ]
	$(GORELEASER) --release-notes=bin/notes.md
	cp bin/release/* dist/

cut: ## end the CHANGELOG's Unreleased section, commit and tag it: VERSION=v1.2.3
	@scripts/cut.sh $(VERSION)

clean: ## remove what was built
	rm -rf bin dist

# Without Go, or with one too old, everything else would fail in words that say
# nothing to whoever only wants to use this.
need-go:
	@command -v $(GO) >/dev/null || { echo 'This needs Go $(WANTED_GO) or later, and there is none in PATH: install it from https://go.dev/dl, or take a release, which needs no Go (docs/deploy.md).' >&2; exit 1; }
	@$(GO) list -m >/dev/null 2>&1 || { echo "This needs Go $(WANTED_GO) or later, and here is $$($(GO) version 2>/dev/null | cut -d ' ' -f 3): install it from https://go.dev/dl, or take a release, which needs no Go (docs/deploy.md)." >&2; exit 1; }

# The same binary for this machine. Go knows best whether it is up to date.
.PHONY: bin/host/bootstrap
bin/host/bootstrap: need-go
	@$(BUILD) -o $@ $(FUNCTION)
