#!/usr/bin/env bash
# Builds the function and deploys its stack.
#
#     make deploy [STAGE=dev|prod] [STACK=name] [YES=1]
#
# The settings are those of the environment STAGE in samconfig.toml; copy
# infra/samconfig.toml for a start. Without that file sam asks for each
# parameter, and writes it. Where the stack is there already, what the deployment
# changes in its parameters is shown first; then sam asks where samconfig.toml has
# confirm_changeset = true, unless YES=1. A first deployment that fails is taken
# away again. Needs Go, make, the AWS CLI and the SAM CLI.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

built=.aws-sam/build/template.yaml

# of_stack prints what a query finds in the stack's description, or nothing.
of_stack() {
    aws cloudformation describe-stacks --stack-name "$STACK" --query "Stacks[0].$1" --output text 2>/dev/null || true
}

# stamp writes version and commit into the built template, for the outputs and
# tags of the stack.
stamp() {
    sed -E -e "/^Mappings:/,/^[A-Z]/ { s/^( +Version:).*/\1 '$1'/; s/^( +Commit:).*/\1 '$2'/; }" "$built" >"$dir/stamped"
    grep -qF "Version: '$1'" "$dir/stamped" || die "$built has no Mappings with a Version"
    cp "$dir/stamped" "$built"
}

# defaults prints the parameters of the built template and their defaults.
defaults() {
    awk -F "'" '
        /^[A-Z]/ { inside = /^Parameters:/ }
        inside && /^  [A-Za-z0-9]+:/ { gsub(/[ :]/, ""); name = $0 }
        inside && /^    Default: / { value = $0; sub(/^    Default: /, "", value); gsub(/^\047|\047$/, "", value); print name "\t" value }
    ' "$built"
}

# differences prints the parameters that the deployment changes, and those that
# it does not name and that keep a value besides their default.
differences() {
    local changes
    sam deploy "$@" --no-execute-changeset --no-confirm-changeset --no-fail-on-empty-changeset >"$dir/preview" 2>&1 ||
        { cat "$dir/preview" >&2; die 'nothing was deployed'; }
    changes="$(sed -nE 's/^Changeset created successfully\. +//p' "$dir/preview")"
    [[ -n $changes ]] || return 0 # none; sam says so again
    of_stack 'Parameters[].[ParameterKey,ParameterValue]' >"$dir/now"
    aws cloudformation describe-change-set --change-set-name "$changes" \
        --query 'Parameters[].[ParameterKey,ParameterValue]' --output text >"$dir/next"
    aws cloudformation delete-change-set --change-set-name "$changes"
    sed -nE 's/^.*Parameter overrides *: *//p' "$dir/preview" | grep -oE '"[A-Za-z0-9]+": ' | tr -d '": ' >"$dir/given"
    defaults >"$dir/defaults"
    awk -F '\t' '
        function shown(v) { return v == "" ? "empty" : v }
        FILENAME ~ /given$/ { given[$1] = 1; next }
        FILENAME ~ /defaults$/ { default_[$1] = $2; next }
        FILENAME ~ /now$/ { now[$1] = $2; running[$1] = 1; next }
        !running[$1] { printf "  %-20s new: %s\n", $1, shown($2); next }
        given[$1] && $2 != now[$1] { printf "  %-20s %s -> %s\n", $1, shown(now[$1]), shown($2) }
        !given[$1] && now[$1] != default_[$1] {
            printf "  %-20s %s, not given: stays as it was last set; its default is %s\n", $1, shown(now[$1]), shown(default_[$1])
        }
    ' "$dir/given" "$dir/defaults" "$dir/now" "$dir/next" >"$dir/differences"
    echo 'parameters, against the running stack:' >&2
    if [[ -s $dir/differences ]]; then cat "$dir/differences" >&2; else echo '  none differ' >&2; fi
}

# clear deletes a stack whose creation failed: it can't be updated.
clear() {
    local state
    state="$(of_stack StackStatus)"
    case $state in
    ROLLBACK_COMPLETE | ROLLBACK_FAILED | CREATE_FAILED) ;;
    *) return 0 ;;
    esac
    echo "deleting $STACK, whose creation failed ($state)" >&2
    aws cloudformation delete-stack --stack-name "$STACK"
    aws cloudformation wait stack-delete-complete --stack-name "$STACK"
}

# events prints the newest events of the stack: id, status, resource, type, reason.
events() {
    aws cloudformation describe-stack-events --stack-name "$STACK" --max-items "$1" --output text \
        --query 'StackEvents[].[EventId,ResourceStatus,LogicalResourceId,ResourceType,ResourceStatusReason]' 2>/dev/null || true
}

# explain prints the first event after a marker that failed, and what to do.
explain() {
    local marker="$1" id status resource type reason first='' why=''
    while IFS=$'\t' read -r id status resource type reason; do
        [[ $id != "$marker" ]] || break
        if [[ $status == *_FAILED && $type != AWS::CloudFormation::Stack && $reason != *cancelled* ]]; then
            first="$resource ($type)" why="$reason"
        fi
    done < <(events 300)
    if [[ -n $first ]]; then
        printf '\nfailed first: %s\n  %s\n' "$first" "$why" >&2
        case $why in
        *'not authorized'* | *AccessDenied*) echo '  Whoever deploys lacks this right; infra/iam-deploy.json has all that it takes.' ;;
        *'already exist'*) echo '  Another stack, or what is left of one, has this name: delete that, or take another STACK.' ;;
        *UnreservedConcurrentExecution*) echo '  The account has too little concurrency to reserve any: leave ReservedConcurrency empty.' ;;
        *) echo "  Mend that, in most cases a parameter in samconfig.toml, then deploy again." ;;
        esac >&2
    fi
    case $(of_stack StackStatus) in
    UPDATE_ROLLBACK_COMPLETE) echo "$STACK runs as it did before." >&2 ;;
    UPDATE_ROLLBACK_FAILED)
        echo "$STACK could not go back to what it was: aws cloudformation continue-update-rollback --stack-name $STACK" >&2
        ;;
    esac
}

command -v sam >/dev/null || die 'needs the SAM CLI: https://docs.aws.amazon.com/serverless-application-model/, or scripts/venv.sh, which installs it into .venv'
target
read -r version commit < <(make --silent version)
printf 'version   %s (%s)\n' "$version" "$commit" >&2
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT

# In place: otherwise sam copies the whole directory first, .venv included.
sam build --build-in-source
stamp "$version" "$commit"

clear
options=(--config-env "$STAGE" --stack-name "$STACK" --region "$AWS_REGION")
if [[ ! -f samconfig.toml ]]; then
    options+=(--guided --capabilities CAPABILITY_IAM)
else
    case $(of_stack StackStatus) in
    '' | REVIEW_IN_PROGRESS) ;; # not created yet, at most asked about
    *) differences "${options[@]}" ;;
    esac
fi
if [[ ${YES:-} == 1 ]]; then options+=(--no-confirm-changeset); fi

IFS=$'\t' read -r marker _ < <(events 1) || true
# Rolled back, not deleted: of a deleted stack the events could not be read.
if ! sam deploy "${options[@]}" --on-failure ROLLBACK; then
    explain "${marker:-}"
    clear
    die 'the deployment failed'
fi
case $(of_stack StackStatus) in
'' | REVIEW_IN_PROGRESS) ;; # somebody said no
*)
    printf 'deployed  %s\n' "$(of_stack "Outputs[?OutputKey=='Version'].OutputValue | [0]")" >&2
    printf 'alarms    %s\n' "$(of_stack "Outputs[?OutputKey=='AlarmsTell'].OutputValue | [0]")" >&2
    ;;
esac
