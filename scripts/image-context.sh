#!/usr/bin/env bash
# Gathers what infra/Dockerfile copies, from what make release wrote into dist/:
#
#     scripts/image-context.sh DIR
set -euo pipefail
dir="$(realpath -m "$1")"
cd "$(dirname "$0")/.."

mkdir -p "$dir"
for arch in amd64 arm64; do
    archives=(dist/purge-tokens_*_linux_"$arch".tar.gz)
    tar -xzf "${archives[0]}" --to-stdout purge-tokens >"$dir/purge-tokens-$arch"
done
cp /etc/ssl/certs/ca-certificates.crt "$dir"
