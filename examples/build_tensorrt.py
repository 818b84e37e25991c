"""Builds a TensorRT engine from an ONNX file, and lets it pass only if it finds the poses that PyTorch finds."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["build-tensorrt", *sys.argv[1:]]))
