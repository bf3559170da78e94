#!/usr/bin/env bash
# Installs the Python tools of make validate into .venv, once for each state of
# scripts/tools/requirements.txt. Needs python3 (3.10 or later) with venv.
#
#     scripts/venv.sh
set -euo pipefail
cd "$(dirname "$0")/.."

want=scripts/tools/requirements.txt
have=.venv/requirements.txt
if cmp -s "$want" "$have"; then exit 0; fi

python3 -m venv --help >/dev/null 2>&1 || {
    echo "venv: needs python3 with its venv module (Debian: python3-venv)" >&2
    exit 1
}
echo 'venv: installing the Python tools into .venv' >&2
python3 -m venv --clear .venv
.venv/bin/pip install --quiet --disable-pip-version-check --requirement "$want"
cp "$want" "$have"
