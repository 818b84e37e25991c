"""The one way to load a model and its image processor by name."""

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .configuration_detrpose import VARIANTS, DETRPoseConfig
from .image_processing_detrpose import DETRPoseImageProcessor
from .modeling_detrpose import DETRPoseForPoseEstimation


def load_config(name: str, **changes: Any) -> DETRPoseConfig:
    """Returns the configuration of a model folder, a Hub id ("owner/name") or a variant ("n", "s", "m", "l", "x").

    Args:
        name: the folder, id or variant.
        changes: fields that shall differ.

    Raises:
        ValueError: if there is no such model, it is no DETRPose model, or its configuration has no such field.
    """
    unknown = sorted(set(changes) - set(inspect.signature(DETRPoseConfig).parameters))
    if unknown:
        raise ValueError(f"a DETRPose configuration has no field {unknown[0]}.")
    if name in VARIANTS:
        return DETRPoseConfig.from_variant(name, changes.pop("keypoint_schema", "coco"), **changes)
    _check_name(name)
    # transformers 4 would guess the kind of model from the folder's name.
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(f"cannot load the configuration of {name}: the folder has no config.json.")
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # transformers and the Hub raise their own kinds
        raise ValueError(f"cannot load the configuration of {name}: {first_line(error)}") from error
    if config.model_type != DETRPoseConfig.model_type:
        raise ValueError(f"{name} is a {config.model_type} model, not a {DETRPoseConfig.model_type} model.")
    return DETRPoseConfig.from_dict({**config.to_dict(), **changes}) if changes else config


def load_model(
    name: str, config: DETRPoseConfig | None = None, dtype: torch.dtype = torch.float32
) -> DETRPoseForPoseEstimation:
    """Returns the model of a folder or Hub id, or of a variant with random weights.

    Args:
        name: see `load_config`.
        config: of the model, where it shall differ from its own; heads that no longer fit are then new.
        dtype: of the weights, whatever they were saved in.

    Raises:
        ValueError: if there is no such model, it is no DETRPose model, or its weights cannot be read.
    """
    own_config = load_config(name)
    if name in VARIANTS:
        return DETRPoseForPoseEstimation(config or own_config).to(dtype)
    try:
        return DETRPoseForPoseEstimation.from_pretrained(
            name, config=config or own_config, dtype=dtype, ignore_mismatched_sizes=config is not None
        )
    except Exception as error:  # transformers, safetensors and the Hub all raise their own kinds
        raise ValueError(f"cannot load the weights of {name}: {first_line(error)}") from error


def load_image_processor(name: str, **changes: Any) -> DETRPoseImageProcessor:
    """Returns the image processor of a folder or Hub id, or the usual one of a variant.

    Args:
        name: see `load_config`.
        changes: settings that shall differ.

    Raises:
        ValueError: if there is none.
    """
    if name in VARIANTS:
        return DETRPoseImageProcessor(keypoint_schema=DETRPoseConfig.from_variant(name).keypoint_schema, **changes)
    _check_name(name)
    try:
        return DETRPoseImageProcessor.from_pretrained(name, **changes)
    except Exception as error:
        raise ValueError(f"cannot load the image processor of {name}: {first_line(error)}") from error


def model_files(name: str) -> list[Path]:
    """Returns the files of a model folder, which no output may replace; none of what is no folder."""
    patterns = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "*.onnx*")
    return [file for pattern in patterns for file in Path(name).glob(pattern)] if name and Path(name).is_dir() else []


def load_pose_estimator(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Returns what finds poses at its fastest: a fused model, or ONNX Runtime for a folder with an exported model.

    Either has `config`, `device` and `dtype`, and is called with `pixel_values` of that device and type.

    Args:
        name: see `load_config`; a folder that holds model.onnx, in whatever precision, is an exported model.
        device: where to run it; a CPU or a CUDA device for exported models.
        dtype: of the weights. An exported model has the precision that it was exported in.

    Returns:
        A [`DETRPoseForPoseEstimation`] or an [`~deployment.ORTDETRPoseForPoseEstimation`].

    Raises:
        ValueError: if there is no such model, or it cannot be loaded or used in this way.
    """
    if not (Path(name) / "model.onnx").is_file():
        return load_model(name).fuse().to(device, dtype)
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} is an exported model, which runs on cpu or cuda, not on {device.type}.")
    try:
        from .deployment import ORTDETRPoseForPoseEstimation
    except ImportError as error:
        raise ValueError(f"{name} is an exported model: {error}") from error
    if device.type == "cuda":
        provider, options = "CUDAExecutionProvider", {"device_id": device.index or 0}
    else:
        provider, options = "CPUExecutionProvider", {}
    model = ORTDETRPoseForPoseEstimation.from_pretrained(name, provider, options)
    if model.has_poses:
        raise ValueError(f"{name} was exported with poses, but its raw outputs are needed: export it without them.")
    if dtype not in (torch.float32, model.dtype):
        raise ValueError(f"{name} was exported in {model.dtype}, so it cannot run in {dtype}.")
    return model


def _check_name(name: str):
    """Raises `ValueError` for what can be no name of a model; the Hub would be asked for it again and again."""
    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(f"there is no model {name}: no such folder, nor one of {', '.join(VARIANTS)}.")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its kind where it has none.

    The message of an error in a process of a data loader is a traceback, whose last line is the one that matters.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition(": ")[2] if "DataLoader worker" in lines[0] and len(lines) > 1 else lines[0]
