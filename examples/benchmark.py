"""Benchmarks a model in PyTorch, ONNX Runtime, TensorRT and OpenVINO, alone and from image files to poses."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["benchmark", *sys.argv[1:]]))
