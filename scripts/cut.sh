#!/usr/bin/env bash
# Cuts a release: ends the section Unreleased of CHANGELOG.md, commits that, and
# tags the commit.
#
#     make cut VERSION=v1.2.3
#
# Nothing is pushed. The tag, once pushed, makes the release.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    echo "cut: $*" >&2
    exit 1
}

version="${1:-}"
[[ $version =~ ^v(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$ ]] || die 'needs a semantic version: make cut VERSION=v1.2.3'
[[ -z $(git status --porcelain) ]] || die 'there are changes that are not committed'
newest="$(git tag --list 'v*' --sort=-version:refname | head -n 1)"
[[ $newest != "$version" && $(printf '%s\n' "$newest" "$version" | sort -V | tail -n 1) == "$version" ]] || die "$version does not come after $newest"
grep -qx '## \[Unreleased\]' CHANGELOG.md || die 'CHANGELOG.md has no section Unreleased'
[[ -n $(scripts/notes.sh Unreleased) ]] || die 'CHANGELOG.md says nothing under Unreleased'

sed "s/^## \[Unreleased\]\$/&\n\n## [${version#v}] - $(date -u +%F)/" CHANGELOG.md >CHANGELOG.cut
cat CHANGELOG.cut >CHANGELOG.md # keeps its mode
rm CHANGELOG.cut
git commit --quiet --message "Release $version" CHANGELOG.md
git tag --annotate "$version" --message "$version"
echo "tagged $version; git push origin HEAD $version makes the release" >&2
