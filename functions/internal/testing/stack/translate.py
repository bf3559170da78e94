"""Writes the CloudFormation that AWS makes of the SAM template, as JSON.

    translate.py template.yaml > stack.json

CodeUri becomes a place in S3, as sam package makes it.
"""

import json
import os
import sys

from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse


class NoManagedPolicies:
    """The template names none, so that IAM needn't be asked for a list."""

    def load(self):
        return {}


os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")  # any; the result does not depend on it
with open(sys.argv[1], encoding="utf-8") as f:
    template = yaml_parse(f)
for resource in template["Resources"].values():
    if resource["Type"] == "AWS::Serverless::Function":
        resource["Properties"]["CodeUri"] = "s3://code/bootstrap.zip"
json.dump(transform(template, {}, NoManagedPolicies()), sys.stdout, indent=1)
