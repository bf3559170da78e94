#!/usr/bin/env bash
# Installs the Python tools of make validate, once for each state of the lists in
# scripts/tools: requirements.txt into .venv, any other into a venv of its own
# below it. Needs python3 (3.10 or later) with venv.
#
#     scripts/venv.sh [checkov] [ministack] [snippets]
set -euo pipefail
cd "$(dirname "$0")/.."

# install fills a venv with what a list names.
install() {
    local want="$1" venv="$2"
    if cmp -s "$want" "$venv/requirements.txt"; then return; fi
    python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
        echo 'venv: needs python3, 3.10 or later, with its venv module (Debian: python3-venv)' >&2
        exit 1
    }
    echo "venv: installing $want into $venv" >&2
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$want"
    cp "$want" "$venv/requirements.txt"
}

install scripts/tools/requirements.txt .venv # first: it clears what is below
for name in "$@"; do
    install "scripts/tools/$name.txt" ".venv/$name"
done
