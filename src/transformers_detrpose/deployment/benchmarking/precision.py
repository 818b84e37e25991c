"""Errors of a model in each precision on a device, stage by stage, against float64 on the CPU."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from ...image_processing_detrpose import DETRPoseImageProcessor
from ...modeling_detrpose import DETRPoseForPoseEstimation, DETRPoseForPoseEstimationOutput
from ..comparison import least_similarity
from ..tf32 import tf32

# The modules of the network whose outputs are compared before the decoder's.
STAGES = ("backbone", "encoder", "query_selection")


@dataclass(frozen=True)
class Precision:
    """A way to compute.

    Args:
        name: its name in reports.
        dtype: type of the weights.
        tf32: whether float32 products may use TF32, on a GPU.
        autocast: type of mixed precision, or None.
    """

    name: str
    dtype: torch.dtype
    tf32: bool = False
    autocast: torch.dtype | None = None

    @contextmanager
    def context(self, device: torch.device) -> Iterator[None]:
        """Computes in this precision."""
        with ExitStack() as stack:
            stack.enter_context(tf32(self.tf32))
            if self.autocast:
                stack.enter_context(torch.autocast(device.type, self.autocast))
            yield


def precisions(device: torch.device) -> list[Precision]:
    """Returns the precisions to compare: not TF32 on a CPU, which lacks it, nor float16, which is slow there."""
    found = [
        Precision("float32", torch.float32),
        Precision("float32 with TF32", torch.float32, tf32=True),
        Precision("float16", torch.float16),
        Precision("bfloat16", torch.bfloat16),
        Precision("autocast to bfloat16", torch.float32, autocast=torch.bfloat16),
    ]
    return [x for x in found if device.type == "cuda" or not x.tf32 and x.dtype != torch.float16]


@torch.no_grad()
def without_zeros(model: DETRPoseForPoseEstimation, seed: int = 0) -> DETRPoseForPoseEstimation:
    """Draws the weights that a new model starts at zero, in place: they would hide the errors of what precedes them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return model


def smooth_images(size: int, seed: int = 0) -> torch.Tensor:
    """Returns an image of random colors that change smoothly, (1, 3, size, size): noise would average out."""
    colors = torch.rand(1, 3, size // 32 + 1, size // 32 + 1, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(colors, (size, size), mode="bilinear", align_corners=True)


@torch.inference_mode()
def compare_precisions(
    model: DETRPoseForPoseEstimation, size: int, device: torch.device
) -> Iterator[dict[str, str | float]]:
    """Compares a model in each precision with its float64 outputs on the CPU, stage by stage.

    Each stage gets the reference's input, so its error is its own, and the same queries are selected: with scores that
    are nearly equal, rounding changes their order. Class scores and keypoints are computed in float32 in every case.

    Args:
        model: the model, on the CPU.
        size: height and width of the image in pixels.
        device: device to compute on.

    Yields:
        For each precision, the relative error of "backbone" and "encoder", |found - expected| / |expected|, the largest
        difference of the "selection_logits" and "logits", and the median and largest difference of keypoints in pixels.
    """
    pixel_values = smooth_images(size)
    reference = copy.deepcopy(model).double().eval()
    expected: dict[str, Any] = {}
    with hooks(reference, lambda name, output: expected.__setitem__(name, output)):
        exact = reference(pixel_values.double())
    del reference
    for precision in precisions(device):
        yield {"precision": precision.name} | errors(model, precision, device, pixel_values, expected, exact)


def errors(model, precision: Precision, device: torch.device, pixel_values, expected, exact) -> dict[str, float]:
    """Returns the errors of a precision, see [`compare_precisions`]."""
    found: dict[str, float] = {}

    def compare_and_replace(name: str, output):
        if name == "query_selection":
            found["selection_logits"] = largest_difference(*(x[0].amax(-1) for x in (output, expected[name])))
        else:
            found[name] = relative_error(*(feature_maps(x) for x in (output, expected[name])))
        dtype = feature_maps(output)[0].dtype
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, dtype), expected[name])

    tested = copy.deepcopy(model).to(device, precision.dtype).eval()
    with hooks(tested, compare_and_replace), precision.context(device):
        outputs = tested(pixel_values.to(device))
    moved = (outputs.pred_keypoints.double().cpu() - exact.pred_keypoints).norm(dim=-1) * pixel_values.shape[-1]
    return found | {
        "logits": largest_difference(outputs.logits, exact.logits),
        "keypoints_median": moved.median().item(),
        "keypoints_largest": moved.max().item(),
    }


@contextmanager
def hooks(model: DETRPoseForPoseEstimation, function: Callable[[str, Any], Any]) -> Iterator[None]:
    """Calls a function with the name and the output of each stage; what it returns, unless None, is passed on."""
    handles = [
        getattr(model.model, name).register_forward_hook(lambda _, inputs, output, name=name: function(name, output))
        for name in STAGES
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def feature_maps(output) -> tuple[torch.Tensor, ...]:
    """Returns the feature maps in the output of the backbone or the encoder."""
    return output.feature_maps if hasattr(output, "feature_maps") else output[0]


def relative_error(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> float:
    """Returns |found - expected| / |expected| over all tensors."""
    found, expected = (torch.cat([x.double().cpu().flatten() for x in tensors]) for tensors in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest absolute difference."""
    return (found.double().cpu() - expected.double().cpu()).abs().max().item()


@torch.inference_mode()
def compare_poses(
    model: DETRPoseForPoseEstimation, processor: DETRPoseImageProcessor, image: Path, device: torch.device
) -> Iterator[dict[str, str | float | int]]:
    """Compares the poses of a trained model in each precision with those in float32 on the CPU.

    Args:
        model: the model, on the CPU.
        processor: its image processor.
        image: image file.
        device: device to compute on.

    Yields:
        For each precision, the lowest keypoint "similarity" of a pose with a score above 0.5 to its counterpart, and
        the number of such comparisons, "poses".
    """
    exact = copy.deepcopy(model).eval()
    for precision in precisions(device):
        tested = copy.deepcopy(model).to(device, precision.dtype).eval()

        def run(pixel_values, tested=tested, precision=precision) -> DETRPoseForPoseEstimationOutput:
            with precision.context(device):
                outputs = tested(pixel_values.to(device))
            names = ("logits", "pred_keypoints", "pred_keypoint_std")
            return DETRPoseForPoseEstimationOutput(**{name: outputs[name].cpu() for name in names})

        similarity, count = least_similarity(exact, processor, run, [image], threshold=0.5)
        yield {"precision": precision.name, "similarity": similarity, "poses": count}
