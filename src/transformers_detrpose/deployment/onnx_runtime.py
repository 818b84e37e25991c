"""An exported DETRPose in ONNX Runtime, with the interface of the PyTorch model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from transformers.utils import ModelOutput, cached_file

from ..configuration_detrpose import DETRPoseConfig
from ..loading import first_line, load_config
from ..modeling_detrpose import DETRPoseForPoseEstimationOutput
from .graph import MODEL_FILE, output_shapes

_TORCH_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(int64)": torch.int64}
_NUMPY_TYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}
_GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


@dataclass
class DETRPosePoses(ModelOutput):
    """The poses in a batch of images, best first, one per query of the model.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, num_queries)`): Probability of the label.
        labels (`torch.Tensor` of shape `(batch_size, num_queries)`): Label of the pose.
        keypoints (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2)`): x, y in pixels.
        keypoint_scores (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints)`):
            Expected keypoint similarity of each keypoint, 0 for those that the class lacks.
        boxes (`torch.Tensor` of shape `(batch_size, num_queries, 4)`):
            x1, y1, x2, y2 in pixels, around the keypoints that the class has.
        keypoint_visibility (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints)`, *optional*):
            0 absent, 1 occluded or 2 visible; 0 for those that the class lacks. `None` without a visibility head.
    """

    scores: torch.FloatTensor | None = None
    labels: torch.LongTensor | None = None
    keypoints: torch.FloatTensor | None = None
    keypoint_scores: torch.FloatTensor | None = None
    boxes: torch.FloatTensor | None = None
    keypoint_visibility: torch.LongTensor | None = None


class ORTDETRPoseForPoseEstimation(nn.Module):
    """DETRPose in ONNX Runtime, for folders written by `detrpose export onnx` or `optimum-cli export onnx`.

    It is a module without parameters, as transformers' pipelines expect a module. It stays on the device of its
    execution provider, to which inputs are copied.

    Args:
        session: the ONNX Runtime session.
        config: the configuration of the model.
        path: the ONNX file, for error messages.

    Raises:
        ValueError: if the graph is not that of a DETRPose model with this configuration.

    Example:

    ```python
    >>> from transformers import AutoImageProcessor, pipeline
    >>> from transformers_detrpose.deployment import ORTDETRPoseForPoseEstimation

    >>> model = ORTDETRPoseForPoseEstimation.from_pretrained("detrpose-l-onnx", provider="CPUExecutionProvider")
    >>> image_processor = AutoImageProcessor.from_pretrained("detrpose-l-onnx")
    >>> pose_estimator = pipeline("keypoint-detection", model=model, image_processor=image_processor)
    ```
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, session: onnxruntime.InferenceSession, config: DETRPoseConfig, path: str | os.PathLike):
        super().__init__()
        self.session, self.config, self.path = session, config, Path(path)
        self.provider = session.get_providers()[0]
        self.input_shapes = {node.name: node.shape for node in session.get_inputs()}
        self.has_poses = "target_sizes" in self.input_shapes
        self.output_shapes = output_shapes(config, self.has_poses)
        self._check_graph()
        self._types = {x.name: _TORCH_TYPES[x.type] for x in (*session.get_inputs(), *session.get_outputs())}

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        provider: str = "CPUExecutionProvider",
        provider_options: Mapping[str, Any] | None = None,
        session_options: onnxruntime.SessionOptions | None = None,
    ) -> "ORTDETRPoseForPoseEstimation":
        """Loads an exported model.

        Args:
            name: a folder, or a Hub id ("owner/name").
            provider: execution provider, such as "CPUExecutionProvider" or "CUDAExecutionProvider".
            provider_options: options of the execution provider, such as `{"device_id": 1}`.
            session_options: options of the session, such as the number of threads.

        Raises:
            ValueError: if there is no such model, or this installation of ONNX Runtime cannot run it.
            OSError: if there is no ONNX file.
        """
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise ValueError(f"this installation of ONNX Runtime has no {provider}, only {', '.join(available)}.")
        config, path = load_config(str(name)), cached_file(str(name), MODEL_FILE)
        try:
            session = onnxruntime.InferenceSession(
                path, session_options, providers=[(provider, dict(provider_options or {}))]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise ValueError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
        if session.get_providers()[0] != provider:
            raise ValueError(f"ONNX Runtime could not start its {provider}: are the libraries that it needs installed?")
        return cls(session, config, path)

    @property
    def device(self) -> torch.device:
        """The device that the graph runs on."""
        if self.provider not in _GPU_PROVIDERS:
            return torch.device("cpu")
        options = self.session.get_provider_options()[self.provider]
        return torch.device("cuda", int(options.get("device_id", 0)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the images."""
        return self._types["pixel_values"]

    def can_generate(self) -> bool:
        """Returns False, for transformers' pipelines: this is not a generative model."""
        return False

    def forward(
        self,
        pixel_values: torch.Tensor | np.ndarray,
        target_sizes: torch.Tensor | np.ndarray | None = None,
    ) -> DETRPoseForPoseEstimationOutput | DETRPosePoses:
        """Predicts the poses in a batch of images.

        Args:
            pixel_values: (batch, 3, height, width), RGB in [0, 1]; of the exported size unless that is dynamic.
            target_sizes: (batch, 2), height and width of each image in pixels, for a model exported with poses.

        Returns:
            `DETRPoseForPoseEstimationOutput` with `logits`, `pred_keypoints` and, with the heads for them,
            `pred_keypoint_std` and `pred_visibility`, or [`DETRPosePoses`] from a model exported with poses; with
            arrays if `pixel_values` is an array, else tensors.

        Raises:
            ValueError: if the shape of an input is wrong, or `target_sizes` is missing or not accepted.
        """
        if self.has_poses != (target_sizes is not None):
            word = "needs" if self.has_poses else "takes no"
            raise ValueError(f"{self.path} {word} `target_sizes`: whether it does was chosen when it was exported.")
        inputs = {"pixel_values": pixel_values, "target_sizes": target_sizes}
        inputs = {name: self._to_input(name, inputs[name]) for name in self.input_shapes}
        self._check_shapes({name: tuple(tensor.shape) for name, tensor in inputs.items()})
        outputs = self._run_bound(inputs) if self.device.type == "cuda" else self._run(inputs)
        if isinstance(pixel_values, np.ndarray):
            outputs = {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
        return (DETRPosePoses if self.has_poses else DETRPoseForPoseEstimationOutput)(**outputs)

    def _to_input(self, name: str, values: torch.Tensor | np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values).detach().to(self.device, self._types[name]).contiguous()

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = list(self.output_shapes)
        outputs = self.session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(values) for name, values in zip(names, outputs, strict=True)}

    def _run_bound(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs the graph on tensors in GPU memory, without copies to the host."""
        batch_size = len(inputs["pixel_values"])
        outputs = {
            name: torch.empty(batch_size, *shape, dtype=self._types[name], device=self.device)
            for name, shape in self.output_shapes.items()
        }
        binding = self.session.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                kind = _NUMPY_TYPES[tensor.dtype]
                bind(name, "cuda", self.device.index, kind, tuple(tensor.shape), tensor.data_ptr())
        # ONNX Runtime uses its own stream.
        torch.cuda.current_stream(self.device).synchronize()
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return outputs

    def _check_graph(self):
        """Checks that inputs and outputs are those of a DETRPose model with this configuration."""
        found = {node.name: node.shape for node in self.session.get_outputs()}
        inputs = {"pixel_values", "target_sizes"} if self.has_poses else {"pixel_values"}
        if set(self.input_shapes) != inputs or set(found) != set(self.output_shapes):
            raise ValueError(
                f"{self.path} is not an exported DETRPose: it takes {', '.join(self.input_shapes)} and returns "
                f"{', '.join(found)}, but should return {', '.join(self.output_shapes)}."
            )
        for name, shape in self.output_shapes.items():
            # Dynamic dimensions have names.
            if len(found[name]) != 1 + len(shape) or any(
                isinstance(size, int) and size != wanted for size, wanted in zip(found[name][1:], shape, strict=True)
            ):
                raise ValueError(
                    f"{self.path} does not belong to the config.json beside it: {name} has the shape {found[name]}, "
                    f"but should have (batch, {', '.join(map(str, shape))})."
                )

    def _check_shapes(self, shapes: dict[str, tuple[int, ...]]):
        """Checks that the graph accepts inputs of these shapes."""
        stride = self.config.feature_strides[-1]
        for name, shape in shapes.items():
            wanted = self.input_shapes[name]
            fits = len(shape) == len(wanted) and all(
                size == other for size, other in zip(shape, wanted, strict=True) if isinstance(other, int)
            )
            if not fits or shape[0] != shapes["pixel_values"][0] or (name == "pixel_values" and _rest(shape, stride)):
                wanted = ", ".join(map(str, wanted))
                raise ValueError(
                    f"{self.path} takes `{name}` of the shape ({wanted}), height and width of images being multiples "
                    f"of {stride}, but got {shape}."
                )


def _rest(shape: tuple[int, ...], stride: int) -> bool:
    return any(size % stride for size in shape[2:])
