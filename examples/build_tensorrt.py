"""Builds a TensorRT engine from an ONNX file, and writes it only if it finds the same poses as PyTorch."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["build-tensorrt", *sys.argv[1:]]))
