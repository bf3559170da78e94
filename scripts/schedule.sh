#!/usr/bin/env bash
# Switches the rule that runs the function off or on, at once and without a build,
# and prints its state.
#
#     make pause  [STAGE=dev|prod] [STACK=name]
#     make resume [STAGE=dev|prod] [STACK=name]
#
# The next deployment that changes the rule sets it back to what the parameter
# ScheduleState says. A run under way goes on. Needs the AWS CLI.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

case "${1:-}" in
pause) action=disable-rule ;;
resume) action=enable-rule ;;
*) die 'takes pause or resume' ;;
esac

target
rule="$(aws cloudformation describe-stacks --stack-name "$STACK" \
    --query "Stacks[0].Outputs[?OutputKey=='RuleName'].OutputValue | [0]" --output text)" || die "no stack $STACK in this account and region"
aws events "$action" --name "$rule"
read -r state schedule < <(aws events describe-rule --name "$rule" --query '[State,ScheduleExpression]' --output text)
printf 'schedule  %s, %s\n' "$state" "$schedule" >&2
given="$(aws cloudformation describe-stacks --stack-name "$STACK" \
    --query "Stacks[0].Parameters[?ParameterKey=='ScheduleState'].ParameterValue | [0]" --output text)"
if [[ $state != "$given" ]]; then
    echo "The stack says ScheduleState=$given, and a deployment may set it back to that: change samconfig.toml as well." >&2
fi
