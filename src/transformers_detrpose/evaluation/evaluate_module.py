"""The metrics as a module for Hugging Face's `evaluate` library.

`evaluate.load` copies this file before importing it: hence the absolute imports.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from transformers_detrpose.evaluation.keypoint_metrics import METRICS

if not hasattr(evaluate, "Metric"):
    raise ImportError(
        f"`import evaluate` finds {getattr(evaluate, '__file__', evaluate)} in place of Hugging Face's library: Python "
        "looks beside the running script first, so keep yours in another folder."
    )

FIELDS = ("scores", "labels", "keypoints")


class KeypointModule(evaluate.Metric):
    """A keypoint metric with the methods `add`, `add_batch` and `compute`.

    Args:
        annotations: path or content of a COCO-format file.
        keypoint_schema: keypoint schema of the model, `model.config.keypoint_schema`, a dictionary or a known name.
        config_name: "coco" or "crowdpose", the second argument of `evaluate.load`.
        kwargs: further arguments of `evaluate.Metric`.

    Example:

    ```python
    >>> import evaluate
    >>> from transformers_detrpose.evaluation import EVALUATE_MODULE

    >>> metric = evaluate.load(EVALUATE_MODULE, "coco", annotations="val.json", keypoint_schema="coco")
    >>> poses = image_processor.post_process_keypoint_detection(outputs, threshold=0, target_sizes=sizes)
    >>> metric.add_batch(predictions=poses, references=image_ids)
    >>> metric.compute()  # also resets the metric
    {'AP': 0.716, 'AP50': 0.893, ...}
    ```
    """

    def __init__(self, annotations, keypoint_schema, config_name: str | None = None, **kwargs):
        config_name = config_name or "coco"
        if config_name not in METRICS:
            raise ValueError(f"the metric must be one of {', '.join(METRICS)}, but got {config_name!r}.")
        self.metric = METRICS[config_name](annotations, keypoint_schema)
        super().__init__(config_name=config_name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("float32"))
        poses = {
            "scores": numbers,
            "labels": datasets.Sequence(datasets.Value("int64")),
            "keypoints": datasets.Sequence(datasets.Sequence(numbers)),
        }
        return evaluate.MetricInfo(
            description=type(self.metric).__doc__,
            citation="",
            inputs_description="`predictions` from `post_process_keypoint_detection`, `references`: image ids.",
            features=datasets.Features({"predictions": poses, "references": datasets.Value("int64")}),
        )

    def add_batch(self, *, predictions: Sequence[Mapping[str, Any]], references: Sequence[int], **kwargs):
        """Adds the poses (`predictions`) of some images (`references`: their ids)."""
        # The library accepts exactly the declared fields; post-processing returns more.
        poses = [{field: found[field] for field in FIELDS} for found in predictions]
        super().add_batch(predictions=poses, references=references, **kwargs)

    def add(self, *, prediction: Mapping[str, Any], reference: int, **kwargs):
        """Adds the poses (`prediction`) of one image (`reference`: its id)."""
        super().add(prediction={field: prediction[field] for field in FIELDS}, reference=reference, **kwargs)

    def _compute(self, predictions, references) -> dict[str, float]:
        self.metric.reset()
        self.metric.update(references, predictions)
        return self.metric.compute()
