#!/usr/bin/env bash
# Prints the function's log, one JSON object a line, metric lines included.
#
#     make logs [MINUTES=60] [FILTER='{ $.level = "ERROR" }'] [STAGE=dev|prod] [STACK=name]
#
# FILTER is a filter pattern of CloudWatch Logs. Needs the AWS CLI.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

minutes="${MINUTES:-60}"
[[ $minutes =~ ^[1-9][0-9]{0,6}$ ]] || die 'MINUTES must be a whole number, at least 1'

target
since=$((($(date +%s) - minutes * 60) * 1000))
# Of no events at all the CLI writes None.
aws logs filter-log-events --log-group-name "/aws/lambda/$STACK" --start-time "$since" \
    ${FILTER:+--filter-pattern "$FILTER"} --query 'events[].[message]' --output text | sed -e '/^None$/d' -e '/^$/d'
