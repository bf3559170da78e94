#!/usr/bin/env bash
# Deletes the stack: function, schedule, role, log, queue, alarms, dashboard. The
# database, its secret and its tokens stay as they are.
#
#     make destroy [STAGE=dev|prod] [STACK=name] [YES=1]
#
# It asks first, unless YES=1. Needs the AWS CLI.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

target
# A deletion of what is not there succeeds, and the mistyped name would go unseen.
aws cloudformation describe-stacks --stack-name "$STACK" >/dev/null || die "no stack $STACK in this account and region"
confirm "This deletes the stack $STACK, its log included."
aws cloudformation delete-stack --stack-name "$STACK"
aws cloudformation wait stack-delete-complete --stack-name "$STACK"
echo "deleted $STACK" >&2
