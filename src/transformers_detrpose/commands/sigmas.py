"""Estimates the sigma of each keypoint from images that were annotated twice.

    detrpose sigmas --annotations anna.json --again ben.json --output schema.json

A sigma says how far apart two annotations of a keypoint usually are, as a fraction of the root of the person's area,
and so how far a prediction may be from its annotation; see `docs/datasets.md` for the definition. Printed is, for each
keypoint, the number of distances, the sigma and its standard error, and the sigma according to the median distance:
where that is much smaller, look for gross errors, such as left and right swapped. The file that is written holds names,
edges, pairs and sigmas, for `--schema` of other commands.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data import CocoAnnotations, read_annotations, read_schema
from ..data.sigma_estimation import SigmaEstimates, estimate_sigmas
from ..files import check_outputs, whole_file
from ..keypoint_schemas import KeypointSchema
from .command_line import CommandError, add_schema, add_split, count, run_command, show_log


def estimate(arguments: argparse.Namespace):
    """Prints the sigmas, and writes the schema."""
    show_log()
    if arguments.output:
        check_outputs([arguments.output], [arguments.annotations, arguments.again])
    first = read_annotations(arguments.annotations, read_schema(arguments.schema), arguments.split)
    second = read_annotations(arguments.again, first.schema, arguments.split)
    label = find_label(arguments, first)
    own = first.schema if label is None else first.schema.of_class(label).schema
    found = estimate_sigmas(first, second, own, label)
    schema = with_sigmas(own, found, arguments.min_pairs)
    print(f"{found.num_pairs} people in both files; {found.num_alone[0]} and {found.num_alone[1]} in one only")
    report(schema, found, arguments.min_pairs)
    if arguments.output:
        with whole_file(arguments.output) as path:
            path.write_text(json.dumps(schema.to_dict(), indent=2) + "\n", encoding="utf-8")
        print(f"{arguments.output}: keypoint schema written")


def find_label(arguments: argparse.Namespace, annotations: CocoAnnotations) -> int | None:
    """Returns the id of the category to estimate; `None` for all, if they have the same keypoints."""
    names, chosen = annotations.categories, arguments.category
    if chosen is None:
        if annotations.schema.classes is None:
            return None
        raise CommandError(f"--category is needed, as {', '.join(names.values())} have different keypoints")
    label = next((label for label, name in names.items() if name == chosen), None)
    if label is None:
        raise CommandError(f"--category {chosen} is not in {arguments.annotations}, only {', '.join(names.values())}")
    return label


def with_sigmas(schema: KeypointSchema, found: SigmaEstimates, min_pairs: int) -> KeypointSchema:
    """Returns the schema with the sigmas that are estimated from enough distances.

    Raises:
        CommandError: if all distances of a keypoint are 0.
    """
    is_enough = found.counts >= min_pairs
    for name in np.array(schema.names)[is_enough & (found.sigmas == 0)]:
        raise CommandError(f"{name} is at the same place in both files for all people, so it was not annotated twice")
    return replace(schema, sigmas=tuple(np.where(is_enough, found.sigmas, schema.sigmas).round(5).tolist()))


def report(schema: KeypointSchema, found: SigmaEstimates, min_pairs: int):
    """Prints the table, and names the keypoints whose sigma is not estimated."""
    width = max(8, *map(len, schema.names))
    print(f"{'keypoint':{width}}  distances   sigma   error  by median")
    rows = zip(schema.names, found.counts, schema.sigmas, found.errors, found.medians, strict=True)
    for name, number, sigma, error, median in rows:
        estimated = f"  {error:.4f}     {median:.4f}" if number >= min_pairs else ""
        print(f"{name:{width}}  {number:9}  {sigma:.4f}{estimated}")
    for name, number, sigma in zip(schema.names, found.counts, schema.sigmas, strict=True):
        if number < min_pairs:
            print(f"{name}: {number} distances are fewer than --min-pairs {min_pairs}, so sigma stays {sigma:g}.")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose sigmas",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required = {"type": Path, "required": True, "default": argparse.SUPPRESS, "metavar": "FILE"}
    parser.add_argument("--annotations", **required, help="COCO-format JSON file, or data.yaml of YOLO")
    parser.add_argument("--again", **required, help="annotations of the same images by somebody else")
    add_split(parser, "val", annotations="one of them")
    add_schema(parser)
    parser.add_argument("--category", metavar="NAME", help="class to estimate; needed if keypoints differ by class")
    parser.add_argument(
        "--min-pairs",
        type=count,
        default=30,
        metavar="N",
        help="fewest distances to estimate a sigma from, 30 for a standard error of 9 %%; others stay those of the "
        "dataset or of --schema, usually 0.05",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write the schema to, for --schema")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command("detrpose sigmas", estimate, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
