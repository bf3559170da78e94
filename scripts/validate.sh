#!/usr/bin/env bash
# Checks what is deployed and the scripts that deploy it, without an AWS account:
#
#     make validate
#
# cfn-lint and checkov on the templates and on the translation of template.yaml (a
# warning is an error), the tests of functions/internal/testing/stack, shellcheck,
# actionlint, sam validate --lint and sam build. The Python tools, the SAM CLI
# among them, are installed into .venv on the first run.
#
#     make validate-all
#
# also changes each parameter of the stack and sets it back.
#
#     scripts/validate.sh without-tests
#
# leaves the tests to make test, which has them too.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/venv.sh checkov ministack snippets
PATH="$PWD/.venv/bin:$PATH"
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT

step() { printf '%-8s %s\n' validate "$*" >&2; }

step 'cfn-lint: template.yaml, infra/*.yaml, translation'
.venv/bin/python functions/internal/testing/stack/translate.py template.yaml >"$dir/translation.json"
.venv/bin/cfn-lint template.yaml infra/*.yaml "$dir/translation.json"

step checkov
.venv/checkov/bin/checkov --config-file scripts/tools/checkov.yaml --file "$dir/translation.json" infra/*.yaml

if [[ "${1:-}" != without-tests ]]; then
    step 'go test ./functions/internal/testing/stack'
    for program in psql setsid openssl; do
        command -v "$program" >/dev/null || step "THE DOCUMENTED WAY TO DEPLOY IS NOT TRIED: $program is not installed"
    done
    STACK_TOOLS=required STACK_ALL="${1:-}" go test -count=1 -parallel=8 ./functions/internal/testing/stack # reads what go does not watch
fi

step shellcheck
.venv/bin/shellcheck --external-sources scripts/*.sh .ci/run

shopt -s nullglob
workflows=(.github/workflows/*.yml .github/workflows/*.yaml)
if ((${#workflows[@]})); then
    step actionlint
    # In a module of its own: golangci-lint wants a newer library of YAML than it compiles with.
    go tool -modfile=scripts/tools/actionlint/go.mod actionlint -shellcheck .venv/bin/shellcheck "${workflows[@]}"
fi

export SAM_CLI_TELEMETRY=0
step 'sam validate --lint'
sam validate --lint --region us-east-1 >/dev/null
step 'sam build'
# In place, or sam copies the whole directory first, .venv included.
sam build --build-in-source --build-dir "$dir/build" >/dev/null 2>"$dir/log" || { cat "$dir/log" >&2; exit 1; }
make --silent build
cmp "$dir/build/PurgeTokens/bootstrap-aarch64" bin/bootstrap # the same as of make build
