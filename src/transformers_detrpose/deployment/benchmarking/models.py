"""Loads models to measure."""

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor

from ... import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor
from ...commands.command_line import CommandError, first_line
from ...configuration_detrpose import VARIANTS


def load_model(
    name: str, model_class: type[DETRPoseForPoseEstimation] = DETRPoseForPoseEstimation, **changes
) -> DETRPoseForPoseEstimation:
    """Returns a model on the CPU, in float32.

    Args:
        name: Model folder or Hub id, or a variant, whose weights are then random; that takes as long.
        model_class: Class of the model.
        changes: Fields of the configuration that shall differ.

    Raises:
        CommandError: if there is no such model, or it is no DETRPose model.
    """
    try:
        if name in VARIANTS:
            return model_class(DETRPoseConfig.from_variant(name, **changes))
        if not Path(name).is_dir() and name.count("/") != 1:
            raise CommandError(f"--model {name}: no such folder, nor one of {', '.join(VARIANTS)}")
        config = AutoConfig.from_pretrained(name)
        if config.model_type != DETRPoseConfig.model_type:
            raise CommandError(f"--model {name} is a {config.model_type} model, not a DETRPose model")
        config = DETRPoseConfig.from_dict({**config.to_dict(), **changes})
        return model_class.from_pretrained(name, config=config, ignore_mismatched_sizes=bool(changes))
    except CommandError:
        raise
    except Exception as error:  # transformers, safetensors and the Hub all raise their own kinds
        raise CommandError(f"cannot load --model {name}: {first_line(error)}") from error


def load_processor(name: str, config: DETRPoseConfig, size: int | None) -> DETRPoseImageProcessor:
    """Returns the image processor of a model, or the usual one for a variant.

    Args:
        name: See `load_model`.
        config: Configuration of the model.
        size: Height and width of the images in pixels; the model's own if not given.
    """
    changes = {} if size is None else {"size": {"height": size, "width": size}}
    if name in VARIANTS:
        return DETRPoseImageProcessor(keypoint_schema=config.keypoint_schema, **changes)
    try:
        return AutoImageProcessor.from_pretrained(name, **changes)
    except Exception as error:
        raise CommandError(f"cannot load the image processor of --model {name}: {first_line(error)}") from error
