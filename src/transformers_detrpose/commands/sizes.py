"""Counts parameters and floating-point operations of the published models, as they are deployed.

    detrpose sizes

Counted are the parameters of the fused model, and the operations of its convolutions and matrix products for one image
(a multiplication and an addition are two operations). The last column is what PyTorch's FLOP counter says of the
official model: without the attention across instances, which it runs as one fused operation that the counter does not
see, and with a convolution of enlarged maps in the encoder, which takes place before they are enlarged here. No weights
are needed.
"""

import argparse
import re

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .. import DETRPoseConfig, DETRPoseForPoseEstimation
from ..configuration_detrpose import VARIANTS
from ..keypoint_schemas import SCHEMAS


def count_costs(model: DETRPoseForPoseEstimation, size: int) -> tuple[int, int, int]:
    """Counts what one square image costs.

    Args:
        model: a fused model.
        size: height and width of the image in pixels.

    Returns:
        The parameters, the operations, and the operations that would be counted in the official model.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=model.device))
    total, parts = counter.get_total_flops(), {k: sum(v.values()) for k, v in counter.get_flop_counts().items()}
    across = sum(count for name, count in parts.items() if name.endswith(".across_attn"))
    quarter = sum(count for name, count in parts.items() if re.search(r"fpn_blocks\.\d+\.conv1_parts\.\d\.0$", name))
    return sum(parameter.numel() for parameter in model.parameters()), total, total - across + 3 * quarter


def main(argv: list[str] | None = None) -> int:
    """Reads the command line, prints the table in Markdown and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="detrpose sizes",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="sizes to count")
    parser.add_argument(
        "--datasets", nargs="+", default=list(SCHEMAS), choices=list(SCHEMAS), help="skeletons to count"
    )
    parser.add_argument("--size", type=int, default=640, help="height and width of the image in pixels")
    args = parser.parse_args(argv)

    rows = []
    models = [(variant, dataset) for dataset in args.datasets for variant in args.variants]
    for variant, dataset in tqdm(models, desc="models", leave=False):
        # On the meta device shapes are computed but no numbers, so this takes neither memory nor time.
        with torch.device("meta"):
            model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant(variant, skeleton=dataset)).fuse()
        parameters, operations, official_operations = count_costs(model, args.size)
        figures = (parameters / 1e6, operations / 1e9, official_operations / 1e9)
        rows.append("| ".join([f"| DETRPose-{variant.upper()} | {dataset} ", *(f"{x:.2f} " for x in figures)]) + "|")
    print("| model | skeleton | parameters (M) | GFLOPs | GFLOPs counted in the official one |\n|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
