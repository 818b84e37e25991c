"""Counts parameters and floating-point operations of the published models, as they are deployed.

    python examples/model_sizes.py

Counted are the parameters of the fused model, and the operations of its convolutions and matrix products for one image
(a multiplication and an addition are two operations). The last column leaves out the attention across instances: in the
official model PyTorch runs it as one fused operation that its FLOP counter does not see, so that is the column to
compare with a count of the official model. No weights are needed.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation
from transformers_detrpose.configuration_detrpose import VARIANTS
from transformers_detrpose.keypoint_schemas import SCHEMAS


def count_costs(model: DETRPoseForPoseEstimation, size: int) -> tuple[int, int, int]:
    """Counts what one square image costs.

    Args:
        model: a fused model.
        size: height and width of the image in pixels.

    Returns:
        The parameters, the operations, and the operations of the attention across instances among them.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=model.device))
    across = [sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.endswith(".across_attn")]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, counter.get_total_flops(), sum(across)


def main(argv: list[str] | None = None) -> int:
    """Reads the command line, prints the table in Markdown and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
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
        parameters, operations, across = count_costs(model, args.size)
        figures = (parameters / 1e6, operations / 1e9, (operations - across) / 1e9)
        rows.append("| ".join([f"| DETRPose-{variant.upper()} | {dataset} ", *(f"{x:.2f} " for x in figures)]) + "|")
    print("| model | skeleton | parameters (M) | GFLOPs | without attention across instances |\n|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
