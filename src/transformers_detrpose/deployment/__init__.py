"""Deployment of DETRPose: fusing, ONNX export, ONNX Runtime, 8-bit quantization.

Names that need Optimum or ONNX Runtime are imported on first access.
"""

import importlib

_MODULES = {
    "DETRPoseGraph": "graph",
    "DETRPosePoses": "onnx_runtime",
    "DETRPoseOnnxConfig": "optimum_onnx",
    "ExportError": "validation",
    "ORTDETRPoseForPoseEstimation": "onnx_runtime",
    "export_onnx": "onnx_export",
    "fuse": "fusing",
    "known_to_optimum": "optimum_onnx",
    "quantize_onnx": "quantization",
    "validate_onnx": "validation",
}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ImportError as error:
        extra = "optimum" if _MODULES[name] == "optimum_onnx" else "onnx"
        message = f'{name} needs `pip install "transformers-detrpose[{extra}]"`: {error}.'
        raise ImportError(message, name=error.name) from error
    return getattr(module, name)
