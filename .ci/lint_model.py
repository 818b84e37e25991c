"""Runs the linter of transformers' rules for models over this one.

A rule that is right in general and wrong in one place has `# trf-ignore: RULE` there, with the reason.
"""

import sys
from pathlib import Path

import mlinter

# The rules that are left off, and why.
LEFT_OFF = {
    "TRF010": "`@strict` needs configurations that are dataclasses; those of transformers 4.57 are not",
    "TRF023": "`hidden_size` in place of `d_model`; RT-DETR and D-FINE, which this follows, say `d_model` as well",
    "TRF028": "a license header in every file; this repository states its license once, in LICENSE",
    "TRF045": "`output_attentions` and its like belong to decorators that transformers 4.57 does not have",
    "TRF057": "docstrings made by `auto_docstring`, which leaves placeholders in classes outside transformers",
}


def main() -> int:
    """Prints what violates a rule; returns the exit code."""
    source = Path(__file__).parents[1] / "src" / "transformers_detrpose"
    rules = mlinter.DEFAULT_ENABLED_TRF_RULES - set(LEFT_OFF)
    violations = []
    for path in mlinter.iter_modeling_files(search_paths=[source]):
        violations += mlinter.analyze_file(path, path.read_text(encoding="utf-8"), rules)
    for violation in violations:
        print(f"{violation.file_path}:{violation.line_number}: {violation.message}", file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
