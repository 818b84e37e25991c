"""Counts the parameters and floating-point operations of the published models, fused for deployment.

    detrpose sizes

Parameters are those of the fused model; operations are those of its convolutions and matrix products for one image (a
multiplication and an addition count as two). The last column is what operation counters find in the official model.
No weights are needed.
"""

import argparse

import torch
from tqdm import tqdm

from ..configuration_detrpose import DETRPoseConfig
from ..deployment.benchmarking.costs import count_costs
from ..keypoint_schemas import SCHEMAS
from ..modeling_detrpose import DETRPoseForPoseEstimation
from ..variants import DETRPOSE_VARIANTS, VARIANTS, model_name
from .command_line import count, run_command


def print_sizes(args: argparse.Namespace):
    """Prints the table in Markdown."""
    rows = []
    models = [
        (variant, dataset)
        for dataset in args.datasets
        for variant in args.variants
        if dataset == "coco" or variant in DETRPOSE_VARIANTS  # there is no ECPose for another skeleton
    ]
    for variant, dataset in tqdm(models, desc="models", leave=False):
        # The meta device computes shapes but no values, which takes neither memory nor time.
        with torch.device("meta"):
            model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant(variant, skeleton=dataset)).fuse()
        parameters, operations, official_operations = count_costs(model, args.size)
        figures = (parameters / 1e6, operations / 1e9, official_operations / 1e9)
        rows.append("| ".join([f"| {model_name(variant)} | {dataset} ", *(f"{x:.2f} " for x in figures)]) + "|")
    print("| model | skeleton | parameters (M) | GFLOPs | GFLOPs, official model |\n|---|---|---|---|---|")
    print("\n".join(rows))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose sizes",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="sizes to count")
    parser.add_argument(
        "--datasets", nargs="+", default=list(SCHEMAS), choices=list(SCHEMAS), help="skeletons to count"
    )
    parser.add_argument("--size", type=count, default=640, help="height and width of the image in pixels")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command("detrpose sizes", print_sizes, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
