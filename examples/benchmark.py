"""Measures how fast a model is: in PyTorch, ONNX Runtime, TensorRT and OpenVINO, alone and from files to poses."""

from transformers_detrpose.commands.benchmark import main

if __name__ == "__main__":
    raise SystemExit(main())
