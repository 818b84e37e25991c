"""Makes `optimum-cli export onnx` know DETRPose.

Optimum imports every module of this namespace, which several packages share, whenever its command starts: hence no
import of anything slow, and nothing that fails where Optimum's ONNX exporter is not installed.
"""

import functools

try:
    from optimum.commands.export.onnx import ONNXExportCommand
except ImportError:
    ONNXExportCommand = None


def is_detrpose(args) -> bool:
    """Returns whether the model of a command is a DETRPose."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(args.model, cache_dir=args.cache_dir)
    except OSError:
        return False  # such as a model of another library; Optimum will say so if it is an error
    return config.get("model_type") == "detrpose"


def knowing_detrpose(run):
    """Wraps the `run` method of the command so that DETRPose is known when it is what shall be exported."""

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
