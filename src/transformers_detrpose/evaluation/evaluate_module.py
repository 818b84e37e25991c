"""The metrics as modules of Hugging Face's library `evaluate`, for code that is built on it.

Needs `pip install evaluate`. Nothing else of this package does: Python puts the folder of a script first on its path,
so that in a script beside one named `evaluate.py`, `import evaluate` would find that one.
"""

import datasets
import evaluate

from .keypoint_metrics import KeypointMetric


class KeypointModule(evaluate.Metric):
    """A metric of this package behind `add`, `add_batch` and `compute`.

    Args:
        metric: What scores the poses.
        kwargs: Further arguments of `evaluate.Metric`.

    Example:

    ```python
    >>> module = KeypointModule(CocoKeypoints("person_keypoints_val2017.json", "coco"))
    >>> poses = image_processor.post_process_keypoint_detection(outputs, threshold=0, target_sizes=sizes)
    >>> module.add_batch(predictions=poses, references=image_ids)
    >>> module.compute()  # also starts anew
    {'AP': 0.716, 'AP50': 0.893, ...}
    ```
    """

    def __init__(self, metric: KeypointMetric, **kwargs):
        self.metric = metric
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("float32"))
        poses = {  # all that post-processing gives: `evaluate` takes neither more nor less
            "scores": numbers,
            "labels": datasets.Sequence(datasets.Value("int64")),
            "keypoints": datasets.Sequence(datasets.Sequence(numbers)),
            "keypoint_scores": datasets.Sequence(numbers),
            "boxes": datasets.Sequence(numbers),
        }
        return evaluate.MetricInfo(
            description=type(self.metric).__doc__,
            citation="",
            inputs_description="`predictions` from `post_process_keypoint_detection`, `references` are image ids.",
            features=datasets.Features({"predictions": poses, "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        self.metric.reset()
        self.metric.update(references, predictions)
        return self.metric.compute()
