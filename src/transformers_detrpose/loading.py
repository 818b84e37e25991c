"""Loads models and image processors by name."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from .configuration_detrpose import DETRPoseConfig
from .image_processing_detrpose import DETRPoseImageProcessor
from .modeling_detrpose import DETRPoseForPoseEstimation
from .variants import VARIANTS

# Trained on generated figures only, and bundled with this package; with the picture to show what it does.
DEMONSTRATION_MODEL = Path(__file__).with_name("demonstration_model")
SAMPLE_PICTURE = DEMONSTRATION_MODEL / "picture.jpg"

logger = logging.getLogger(__name__)


def load_config(name: str, **changes: Any) -> DETRPoseConfig:
    """Returns the configuration of a model folder, a Hub id ("owner/name") or a variant (a key of `VARIANTS`).

    Args:
        name: the folder, id or variant.
        changes: fields to override.

    Raises:
        ValueError: if there is no such model, it is not a DETRPose model, or its configuration has no such field.
    """
    unknown = sorted(set(changes) - set(inspect.signature(DETRPoseConfig).parameters))
    if unknown:
        raise ValueError(f"a DETRPose configuration has no field {unknown[0]}.")
    if name in VARIANTS:
        return DETRPoseConfig.from_variant(name, changes.pop("keypoint_schema", "coco"), **changes)
    _check_name(name)
    # transformers 4 would guess the model type from the folder's name.
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(f"cannot load the configuration of {name}: the folder has no config.json.")
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # transformers and the Hub raise their own exceptions
        raise ValueError(f"cannot load the configuration of {name}: {first_line(error)}") from error
    if config.model_type != DETRPoseConfig.model_type:
        raise ValueError(f"{name} is a {config.model_type} model, not a {DETRPoseConfig.model_type} model.")
    return DETRPoseConfig.from_dict({**config.to_dict(), **changes}) if changes else config


def load_model(
    name: str, config: DETRPoseConfig | None = None, dtype: torch.dtype = torch.float32
) -> DETRPoseForPoseEstimation:
    """Returns the model of a folder or Hub id, or of a variant with random weights.

    `from_pretrained` only warns and initializes randomly what a checkpoint lacks. Here, a checkpoint must match the
    model of its own configuration exactly.

    Args:
        name: see `load_config`.
        config: configuration to use instead of the checkpoint's own. Tensors that are thereby added or change shape,
            such as heads for other keypoints, are newly initialized, which is logged.
        dtype: type of the weights, regardless of the saved type.

    Raises:
        ValueError: if there is no such model, it is not a DETRPose model, its weights cannot be read, or they do not
            match its configuration; the message names the first tensors.
    """
    own_config = load_config(name)
    if name in VARIANTS:
        return DETRPoseForPoseEstimation(config or own_config).to(dtype)
    config = config or own_config
    try:
        with _errors_only():  # missing tensors are reported below
            model, info = DETRPoseForPoseEstimation.from_pretrained(
                name, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except Exception as error:  # transformers, safetensors and the Hub all raise their own exceptions
        raise ValueError(f"cannot load the weights of {name}: {first_line(error)}") from error
    _check_filled(name, info, own_config, config)
    return model


def _check_filled(name: str, info: dict[str, Any], own_config: DETRPoseConfig, config: DETRPoseConfig):
    """Raises `ValueError` for missing or unexpected tensors of a checkpoint; logs newly initialized ones."""
    missing = set(info["missing_keys"])
    # transformers 5 returns the shapes with each name.
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    left_over = set(info["unexpected_keys"])
    changed = set()
    if missing | mismatched | left_over:
        before, after = _shapes(own_config), _shapes(config)
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    problems = {
        "lacks": missing - changed,
        "has in another shape": mismatched - changed,
        "has too": left_over - changed,
    }
    found = [f"{verb} {_list_names(keys)}" for verb, keys in problems.items() if keys]
    if found:
        raise ValueError(f"the weights of {name} are not those of the model in its config.json: it {'; '.join(found)}.")
    new = (missing | mismatched) & changed
    if new:
        logger.warning("%s: new, because the configuration was changed: %s", name, _list_names(new))


def _shapes(config: DETRPoseConfig) -> dict[str, torch.Size]:
    """Returns the shapes of a model's tensors by name."""
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in DETRPoseForPoseEstimation(config).state_dict().items()}


def _list_names(names: set[str], most: int = 10) -> str:
    listed = ", ".join(sorted(names)[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


@contextmanager
def _errors_only() -> Iterator[None]:
    """Silences transformers' warnings."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def load_image_processor(name: str, **changes: Any) -> DETRPoseImageProcessor:
    """Returns the image processor of a folder or Hub id, or the default one of a variant.

    Args:
        name: see `load_config`.
        changes: settings to override.

    Raises:
        ValueError: if there is none.
    """
    if name in VARIANTS:
        return DETRPoseImageProcessor.for_model(DETRPoseConfig.from_variant(name), **changes)
    _check_name(name)
    try:
        return DETRPoseImageProcessor.from_pretrained(name, **changes)
    except Exception as error:
        raise ValueError(f"cannot load the image processor of {name}: {first_line(error)}") from error


def model_files(name: str) -> list[Path]:
    """Returns the files of a model folder, which no output may overwrite; empty if `name` is not a folder."""
    patterns = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "*.onnx*")
    return [file for pattern in patterns for file in Path(name).glob(pattern)] if name and Path(name).is_dir() else []


def load_pose_estimator(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Returns the fastest form of a model: fused, or running in ONNX Runtime for a folder with an exported model.

    Both have `config`, `device` and `dtype`, and are called with `pixel_values` of that device and type.

    Args:
        name: see `load_config`; a folder that contains model.onnx, in any precision, is an exported model.
        device: device of the model; a CPU or a CUDA device for exported models.
        dtype: type of the weights. An exported model keeps the precision of its export.

    Returns:
        A [`DETRPoseForPoseEstimation`] or an [`~deployment.ORTDETRPoseForPoseEstimation`].

    Raises:
        ValueError: if there is no such model, or it cannot be loaded or used as requested.
    """
    if not (Path(name) / "model.onnx").is_file():
        # On its device, because that determines how some modules are written.
        return load_model(name).to(device).fuse().to(dtype)
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
    """Raises `ValueError` for an impossible model name, for which the Hub would be queried repeatedly."""
    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(f"there is no model {name}: no such folder, nor one of {', '.join(VARIANTS)}.")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has none.

    The message of an error in a data-loading worker is a traceback, whose last line is the relevant one.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition(": ")[2] if "DataLoader worker" in lines[0] and len(lines) > 1 else lines[0]
