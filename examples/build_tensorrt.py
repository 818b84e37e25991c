"""Builds a TensorRT engine from an ONNX file, and lets it pass only if it finds the poses that PyTorch finds."""

from transformers_detrpose.commands.build_tensorrt import main

if __name__ == "__main__":
    raise SystemExit(main())
