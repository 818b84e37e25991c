"""Registers DETRPose with `optimum-cli export onnx`.

Whenever its command starts, Optimum imports all modules in this namespace, which several packages share: hence no slow
imports, and none that fail if Optimum's ONNX exporter is not installed.
"""

import functools

try:
    from optimum.commands.export.onnx import ONNXExportCommand
except ImportError:
    ONNXExportCommand = None


def is_detrpose(args) -> bool:
    """Returns whether a command's model is a DETRPose model."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(args.model, cache_dir=args.cache_dir)
    except OSError:
        return False  # such as a model of another library; Optimum reports errors itself
    return config.get("model_type") == "detrpose"


def knowing_detrpose(run):
    """Wraps the command's `run` method to register DETRPose if that is the model to export."""

    @functools.wraps(run)
    def run_knowing_detrpose(command):
        if not is_detrpose(command.args):
            return run(command)
        from transformers_detrpose.deployment.optimum_onnx import run_export

        def export(folder):
            command.args.output = folder
            run(command)

        return run_export(export, command.args.output)

    return run_knowing_detrpose


if ONNXExportCommand is not None:
    ONNXExportCommand.run = knowing_detrpose(ONNXExportCommand.run)
