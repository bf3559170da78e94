#!/usr/bin/env bash
# Builds the function and deploys its stack.
#
#     make deploy [STAGE=dev|prod] [STACK=name]
#
# The settings are those of the environment STAGE in samconfig.toml; copy
# infra/samconfig.toml for a start. Without that file sam asks for each
# parameter, and writes it. Needs Go, make, the AWS CLI and the SAM CLI.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

command -v sam >/dev/null || die 'needs the SAM CLI: https://docs.aws.amazon.com/serverless-application-model/'
target
# In place: otherwise sam copies the whole directory first, .venv included.
sam build --build-in-source
if [[ -f samconfig.toml ]]; then
    sam deploy --config-env "$STAGE" --stack-name "$STACK" --region "$AWS_REGION"
else
    sam deploy --guided --config-env "$STAGE" --stack-name "$STACK" --region "$AWS_REGION" --capabilities CAPABILITY_IAM
fi
