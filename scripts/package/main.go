// Command package writes the templates of a release:
//
//	package -version 1.2.3 -commit 0123456789ab DIR
//
// template.yaml has SAM build the code. In a release the code is built already, and
// a bucket has it: the function's zip is found by two parameters, so that the
// console or the AWS CLI can deploy it. The other templates go as they are.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	version := flag.String("version", "", "of the release, without a v")
	commit := flag.String("commit", "", "that it is built from")
	flag.Parse()
	if err := run(*version, *commit, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1)
	}
}

func run(version, commit, dir string) error {
	if version == "" || commit == "" || dir == "" {
		return errors.New("usage: package -version 1.2.3 -commit 0123456789ab DIR")
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil { // what an earlier release left
		return err
	}
	for to, from := range map[string]string{
		"purge-tokens.yaml":         "template.yaml",
		"purge-tokens-network.yaml": "infra/network.yaml",
		"purge-tokens-drain.yaml":   "infra/drain.yaml",
	} {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		template := string(text)
		if from == "template.yaml" {
			if template, err = packaged(template, version, commit); err != nil {
				return fmt.Errorf("%s: %w", from, err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, to), []byte(template), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// edit replaces a passage that the template has exactly once.
type edit struct{ old, new string }

// packaged returns the template with the version, and with the code in a bucket.
func packaged(template, version, commit string) (string, error) {
	for _, e := range []edit{
		{"#     sam build && sam deploy --guided          or: make deploy\n", "# This is version " + version + ", whose code is in a bucket: see docs/deploy.md.\n"},
		{"    ParameterGroups:\n", "    ParameterGroups:\n      - Label: {default: Code}\n        Parameters: [CodeBucket, CodeKey]\n"},
		{"    SpdxLicenseId: ", "    SemanticVersion: " + version + "\n    SpdxLicenseId: "},
		{"  # What is deployed. scripts/deploy.sh writes both into the built template; a\n  # plain sam deploy says dev, which is the truth.\n", ""},
		{"      Version: dev\n      Commit: unknown\n", "      Version: v" + version + "\n      Commit: " + commit + "\n"},
		{"  # ---- Database\n", fmt.Sprintf(code, version) + "  # ---- Database\n"},
		{"\nConditions:\n", "\nConditions:\n  HasCodeKey: !Not [!Equals [!Ref CodeKey, '']]\n"},
		{"    Metadata:\n      BuildMethod: makefile # target build-PurgeTokens; SAM's own Go builder takes no flags and makes twice the size\n", ""},
		{"      CodeUri: .\n", fmt.Sprintf(codeURI, version)},
	} {
		if n := strings.Count(template, e.old); n != 1 {
			return "", fmt.Errorf("%q is there %d times, and not once", e.old, n)
		}
		template = strings.Replace(template, e.old, e.new, 1)
	}
	return template, nil
}

const (
	code = `  # ---- Code
  CodeBucket:
    Description: Bucket, in this region, to which you copied the zip of the release.
    Type: String
    AllowedPattern: ^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$
    ConstraintDescription: must be the name of a bucket.
  CodeKey:
    Description: >-
      Key of the zip in that bucket, for the processor in Architecture. Empty for the zip's own name,
      purge-tokens_%[1]s_lambda_arm64.zip or purge-tokens_%[1]s_lambda_x86_64.zip, whichever Architecture needs.
    Type: String
    Default: ''
    MaxLength: 1024

`
	codeURI = `      CodeUri:
        Bucket: !Ref CodeBucket
        Key: !If [HasCodeKey, !Ref CodeKey, !Sub 'purge-tokens_%s_lambda_${Architecture}.zip']
`
)
