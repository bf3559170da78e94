"""Reads a snippet of the documentation on standard input, and says what is wrong with it.

    snippets.py hcl|kubernetes|powershell

Of hcl it writes the content as JSON.
"""

import json
import sys

kind, text = sys.argv[1], sys.stdin.read()
if kind == "hcl":
    import hcl2

    json.dump(hcl2.loads(text), sys.stdout)
elif kind == "kubernetes":
    import kubernetes_validate
    import yaml

    kubernetes_validate.validate(yaml.safe_load(text), kubernetes_validate.latest_version(), strict=True)
else:
    import tree_sitter
    import tree_sitter_powershell

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))

    def wrong(node):
        return [node] if node.is_error or node.is_missing else [w for child in node.children for w in wrong(child)]

    for node in wrong(parser.parse(text.encode()).root_node):
        sys.exit(f"line {node.start_point[0] + 1}: {node.text.decode()}")
