"""The "keypoint-detection" pipeline: images in, named keypoints out."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForKeypointDetection, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .images import load_rgb_image
from .keypoint_schemas import VISIBILITIES

TASK = "keypoint-detection"

# Entry for the pipeline in `config.json`, for `trust_remote_code=True` where this package is not installed.
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_keypoint_detection.KeypointDetectionPipeline",
        "pt": ["AutoModelForKeypointDetection"],
        "type": "image",
    }
}


class KeypointDetectionPipeline(Pipeline):
    """Detects people, or other objects that the model was trained for, and their keypoints.

    Works with any model whose configuration has a `keypoint_schema` and whose image processor has
    `post_process_keypoint_detection`; the model may also be one that runs in ONNX Runtime.

    Example:

    ```python
    >>> import transformers_detrpose
    >>> from transformers import pipeline

    >>> pose_estimator = pipeline("keypoint-detection", model="detrpose-l")
    >>> pose_estimator("people.jpg", threshold=0.5)
    [{'score': 0.97, 'label': 'person', 'box': {'xmin': 69, 'ymin': 171, 'xmax': 396, 'ymax': 507},
      'keypoints': [{'name': 'nose', 'x': 230.4, 'y': 190.1, 'score': 0.99}, ...]}, ...]
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if getattr(self.model.config, "keypoint_schema", None) is None:
            raise ValueError(
                f"the {TASK} pipeline needs a model whose configuration has a `keypoint_schema`, such as DETRPose, "
                f"but got {type(self.model).__name__} with {type(self.model.config).__name__}."
            )

    def _sanitize_parameters(
        self,
        threshold: float | None = None,
        timeout: float | None = None,
        tracker: Any = None,
        fps: float | None = None,
    ):
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"`fps` must be a positive number of frames per second, but got {fps}.")
        preprocess_parameters = {} if timeout is None else {"timeout": timeout}
        given = {"threshold": threshold, "tracker": tracker, "fps": fps}
        postprocess_parameters = {name: value for name, value in given.items() if value is not None}
        return preprocess_parameters, {}, postprocess_parameters

    def __call__(self, inputs, **kwargs) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Estimates the poses in one or more images.

        Args:
            inputs (`str`, `PIL.Image`, or a list, iterator or dataset of them):
                Paths, URLs, base64 strings or images. The EXIF orientation is applied.
            threshold (`float`, *optional*, defaults to 0.5):
                Poses must have a higher score than this, from 0 to 1.
            timeout (`float`, *optional*):
                Seconds to wait for a URL; no limit if not given.

        Args for videos, which the Hub's inference API does not have:
            tracker (`PoseTracker`, *optional*):
                The images are the consecutive frames of a video, and poses get the number of their person from this
                tracker, which goes on where the last call ended: call its `reset` before another video.
            fps (`float`, *optional*, defaults to 30):
                Frames per second of the video, for the tracker.

        Returns:
            A list of poses, best first, or for several images a list (for iterators and datasets an iterator) of such
            lists. A pose is a dictionary:

            - **score** (`float`): probability of the label.
            - **label** (`str`): name of the label.
            - **box** (`dict[str, int]`): `xmin`, `ymin`, `xmax`, `ymax` around the keypoints in pixels, as integers
              (truncated, not rounded), as in other transformers pipelines.
            - **keypoints** (`list[dict]`): in the order of the skeleton of the class, `name`, `x` and `y` in pixels,
              and `score`, the expected keypoint similarity; all `float`. With a visibility head also `visibility`
              (`str`), which is "visible", "occluded" or "absent".
            - **track_id** (`int`): with a tracker, the number of the person, or -1 if the pose belongs to no track.

        Raises:
            ValueError: if the threshold or frame rate is invalid or an image cannot be read.
        """
        if isinstance(inputs, Iterator):  # transformers takes generators, but no other iterators
            inputs = (image for image in inputs)
        return super().__call__(inputs, **kwargs)

    def preprocess(self, image, timeout: float | None = None) -> dict[str, torch.Tensor]:
        """Loads one image and prepares it for the model."""
        image = load_rgb_image(image, timeout=timeout)
        inputs = self.image_processor(images=image, return_tensors="pt").to(self.dtype or torch.float32)
        inputs["target_sizes"] = torch.tensor([[image.height, image.width]])
        return inputs

    def _forward(self, model_inputs) -> dict[str, torch.Tensor | None]:
        target_sizes = model_inputs["target_sizes"]
        outputs = self.model(pixel_values=model_inputs["pixel_values"])
        # Only what post-processing needs, batch first: the pipeline splits batches along the first dimension.
        return {
            "logits": outputs.logits,
            "pred_keypoints": outputs.pred_keypoints,
            "pred_keypoint_std": getattr(outputs, "pred_keypoint_std", None),
            "pred_visibility": getattr(outputs, "pred_visibility", None),
            "target_sizes": target_sizes,
        }

    def postprocess(
        self, model_outputs, threshold: float = 0.5, tracker: Any = None, fps: float = 30.0
    ) -> list[dict[str, Any]]:
        """Converts the outputs for one image to poses."""
        poses = self.image_processor.post_process_keypoint_detection(
            SimpleNamespace(**model_outputs), threshold=threshold, target_sizes=model_outputs["target_sizes"]
        )[0]
        if tracker is not None:
            # The pipeline calls this for one frame after the other, in their order, also if it predicts in batches.
            poses = tracker.update(poses, tracker.time + 1 / fps if math.isfinite(tracker.time) else 0.0)
        columns = (
            poses["scores"].tolist(),
            poses["labels"].tolist(),
            poses["boxes"].int().tolist(),
            poses["keypoints"].tolist(),
            poses["keypoint_scores"].tolist(),
        )
        described = [self._describe_pose(*pose) for pose in zip(*columns, strict=True)]
        if "keypoint_visibility" in poses:
            schema = self.model.config.keypoint_schema
            for pose, label, values in zip(described, columns[1], poses["keypoint_visibility"].tolist(), strict=True):
                for keypoint, index in zip(pose["keypoints"], schema.of_class(label).indices, strict=True):
                    keypoint["visibility"] = VISIBILITIES[values[index]]
        if tracker is not None:
            for pose, track_id in zip(described, poses["track_id"].tolist(), strict=True):
                pose["track_id"] = track_id
        return described

    def _describe_pose(self, score, label, box, keypoints, keypoint_scores) -> dict[str, Any]:
        config = self.model.config
        own = config.keypoint_schema.of_class(label)
        points = ((*keypoints[index], keypoint_scores[index]) for index in own.indices)
        return {
            "score": score,
            "label": config.id2label[label],
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
            "keypoints": [
                {"name": name, "x": x, "y": y, "score": s}
                for name, (x, y, s) in zip(own.schema.names, points, strict=True)
            ],
        }


def register_pipeline():
    """Registers `pipeline("keypoint-detection")` with transformers; repeated calls change nothing."""
    if PIPELINE_REGISTRY.supported_tasks.get(TASK, {}).get("impl") is KeypointDetectionPipeline:
        return
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=KeypointDetectionPipeline, pt_model=(AutoModelForKeypointDetection,), type="image"
    )
    # Registration sets this attribute, which would mark saved pipelines as remote code: loading them would require
    # `trust_remote_code=True` even where this package is installed.
    del KeypointDetectionPipeline._registered_impl
