#!/usr/bin/env bash
# Invokes the function, waits, and prints its result as JSON on standard output.
# Fails where the function failed.
#
#     make invoke [ACTION=dry-run|check|purge] [DATABASES=A,B] [GRACE_PERIOD=24h]
#                 [MAX_ROWS=n] [BATCH_SIZE=n] [MAX_DURATION=2m]
#                 [STAGE=dev|prod] [STACK=name] [YES=1]
#
# dry-run is the default. A purge asks first, unless YES=1. Needs the AWS CLI and
# the right to invoke the function (infra/iam-invoke.json).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

# json_string writes its argument as a JSON string.
json_string() {
    [[ $1 != *[[:cntrl:]]* ]] || die 'a value holds a control character'
    printf '"%s"' "$(printf '%s' "$1" | sed -e 's/[\"]/\\&/g')"
}

# json_list writes a comma-separated list as a JSON list of strings.
json_list() {
    local item items list='' text
    IFS=, read -r -a items <<<"$1"
    for item in "${items[@]}"; do
        item="${item#"${item%%[![:space:]]*}"}" # blanks around a name are not part of it
        item="${item%"${item##*[![:space:]]}"}"
        text="$(json_string "$item")" || exit 1
        list+="${list:+,}$text"
    done
    printf '[%s]' "$list"
}

# number passes a whole number on; anything else would be no JSON.
number() {
    [[ $2 =~ ^(0|[1-9][0-9]*)$ ]] || die "$1 must be a whole number"
    printf '%s' "$2"
}

ACTION="${ACTION:-dry-run}"
event="{\"action\":$(json_string "$ACTION")"
if [[ -n ${DATABASES:-} ]]; then event+=",\"databases\":$(json_list "$DATABASES")"; fi
if [[ -n ${GRACE_PERIOD:-} ]]; then event+=",\"gracePeriod\":$(json_string "$GRACE_PERIOD")"; fi
if [[ -n ${MAX_ROWS:-} ]]; then event+=",\"maxRows\":$(number MAX_ROWS "$MAX_ROWS")"; fi
if [[ -n ${BATCH_SIZE:-} ]]; then event+=",\"batchSize\":$(number BATCH_SIZE "$BATCH_SIZE")"; fi
if [[ -n ${MAX_DURATION:-} ]]; then event+=",\"maxDuration\":$(json_string "$MAX_DURATION")"; fi
event+='}'

target
printf 'event     %s\n' "$event" >&2
if [[ $ACTION == purge ]]; then confirm 'This deletes expired tokens.'; fi

dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
printf '%s' "$event" >"$dir/event.json"

# One attempt without a time limit: a run takes up to 15 minutes, and the CLI
# would invoke again after one.
failure="$(AWS_MAX_ATTEMPTS=1 aws lambda invoke --function-name "$STACK" --payload "fileb://$dir/event.json" \
    --cli-read-timeout 0 --query FunctionError --output text "$dir/result.json")"

if command -v jq >/dev/null; then
    jq . "$dir/result.json"
elif command -v python3 >/dev/null; then
    python3 -m json.tool "$dir/result.json"
else
    cat "$dir/result.json"
fi
[[ $failure == None ]] || die 'the function failed; see the message above, and make logs'
