"""DETRPose in ONNX: `optimum-cli export onnx`, and the exported model in ONNX Runtime.

What needs Optimum or ONNX Runtime is imported when it is first asked for.
"""

import importlib

_MODULES = {
    "DETRPoseGraph": "graph",
    "DETRPoseOnnxConfig": "optimum_onnx",
    "ExportError": "validation",
    "ORTDETRPoseForPoseEstimation": "onnx_runtime",
    "register_with_optimum": "optimum_onnx",
    "run_export": "optimum_onnx",
    "fuse": "fusing",
    "validate_onnx": "validation",
}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ImportError as error:
        raise ImportError(f'{name} needs `pip install "transformers-detrpose[onnx]"`: {error}.') from error
    return getattr(module, name)
