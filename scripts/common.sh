# What deploy.sh, invoke.sh, logs.sh and destroy.sh share; they source it. It
# settles which stack is meant:
#
#     STAGE        dev (default), prod, or another environment of samconfig.toml
#     STACK        name of the stack and of its function; default purge-tokens-$STAGE
#     AWS_REGION, AWS_PROFILE and so on, as for every AWS tool
# shellcheck shell=bash

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# The AWS CLI of make validate serves where no other is installed.
PATH="$PATH:$PWD/.venv/bin"
command -v aws >/dev/null || die 'needs the AWS CLI'

export STAGE="${STAGE:-dev}"
STACK="${STACK:-purge-tokens-$STAGE}"
[[ $STACK =~ ^[A-Za-z][A-Za-z0-9-]{0,63}$ ]] || die 'STACK must be a letter, then up to 63 letters, digits and -'

# Everything below goes to the region that is printed, whatever a profile says.
AWS_REGION="${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}"
[[ -n $AWS_REGION ]] || die 'no region: set AWS_REGION'
export AWS_REGION AWS_DEFAULT_REGION="$AWS_REGION" AWS_PAGER=''

# target prints where and on what the script is about to act.
target() {
    local account
    account="$(aws sts get-caller-identity --query Account --output text)" || die 'not logged in to AWS'
    printf 'account   %s\nregion    %s\nfunction  %s\n' "$account" "$AWS_REGION" "$STACK" >&2
}

# confirm asks before something that can't be undone; YES=1 answers it.
confirm() {
    local answer=''
    [[ ${YES:-} == 1 ]] && return
    read -r -p "$1 Type yes: " answer || true
    [[ $answer == yes ]] || die 'nothing was done'
}
