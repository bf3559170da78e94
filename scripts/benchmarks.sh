#!/usr/bin/env bash
# Writes what make bench measured into docs/benchmarks.md, by benchstat, and draws
# its pictures:
#
#     scripts/benchmarks.sh bin/bench.txt
set -euo pipefail
cd "$(dirname "$0")/.."

# The machine is told once, and a mean of unlike things means nothing.
stat() { go tool -modfile=scripts/tools/go.mod benchstat -ignore postgres,goos,goarch,cpu,pkg "$@" | grep -v '^geomean'; }
{
    sed '/make bench wrote from here/q' docs/benchmarks.md
    printf '\n```text\ndate: %s\n' "$(date -u +%F)"
    grep -E '^(postgres|goos|goarch|cpu): ' "$1" | sort -u
    printf '\n'
    stat -filter '.name:(Purge OR Link)' -row .name,/rows -col /by "$1"
    printf '\n'
    stat -filter '-.name:(Purge OR Link)' -row .name,/by,/databases "$1"
    printf '```\n\n'
    sed -n '/<!-- to here -->/,$p' docs/benchmarks.md
} >bin/benchmarks.md
cat bin/benchmarks.md >docs/benchmarks.md # keeps its mode
go run ./scripts/pictures .
