#!/usr/bin/env bash
# Prints what CHANGELOG.md says of one version:
#
#     scripts/notes.sh 1.2.3
#     scripts/notes.sh Unreleased
set -euo pipefail
cd "$(dirname "$0")/.."

awk -v heading="## [$1]" '
    /^## / { inside = index($0, heading) == 1; next }
    inside && (NF || text) { text = text $0 "\n" }
    END { sub(/\n+$/, "", text); if (text) print text }
' CHANGELOG.md
