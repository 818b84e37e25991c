"""The model card of saved weights: what the model predicts, where it comes from and how to run it."""

from .configuration_detrpose import DETRPoseConfig
from .configuration_ecvit import is_ecvit
from .keypoint_schemas import VISIBILITIES

_DETRPOSE = """\
DETRPose predicts the keypoints of every person in an image in one pass, without a person detector, non-maximum
suppression or grouping ([paper](https://arxiv.org/abs/2506.13027),
[official code](https://github.com/SebastianJanampa/DETRPose))."""

_ECPOSE = """\
ECPose predicts the keypoints of every person in an image in one pass, without a person detector, non-maximum
suppression or grouping: the decoder of DETRPose ([paper](https://arxiv.org/abs/2506.13027)) behind a compact vision
transformer ([paper](https://arxiv.org/abs/2603.18739))."""

_TEMPLATE = """---
license: {license}
library_name: transformers
pipeline_tag: keypoint-detection
tags:
- {family}
- pose-estimation
- keypoint-detection
{datasets}---

# {title}

{introduction}

{origin}

```python
import transformers_detrpose
from transformers import pipeline

pose_estimator = pipeline("keypoint-detection", model="{name}")
poses = pose_estimator("people.jpg", threshold=0.5)
```

## What it predicts

Labels: {classes}.

{keypoints}

At most {num_queries} instances per image. A keypoint's score is its expected similarity to the true position under the
predicted distribution; it does not say whether the keypoint is visible{visibility}.
{metrics}"""


def model_card(
    config: DETRPoseConfig,
    name: str,
    origin: str,
    datasets: tuple[str, ...] = (),
    metrics: dict[str, float] | None = None,
    license: str | None = None,
) -> str:
    """Returns the model card in Markdown.

    Args:
        config: the model's configuration, with its labels and skeleton.
        name: folder or Hub id of the model.
        origin: where the weights come from, a sentence or two.
        datasets: Hub ids of the datasets it was trained on.
        metrics: metrics by name, such as `{"COCO val AP": 0.725}`.
        license: the Hub's name of the license of the weights. If not given, that of the official DETRPose weights, and
            "unknown" for ECPose, whose weights were published under different licenses.

    Returns:
        The text of a `README.md`.
    """
    rows = "".join(f"| {metric} | {value:.4f} |\n" for metric, value in (metrics or {}).items())
    is_ecpose = is_ecvit(config.backbone_config)
    return _TEMPLATE.format(
        license=license or ("unknown" if is_ecpose else "apache-2.0"),
        family="ecpose" if is_ecpose else "detrpose",
        introduction=_ECPOSE if is_ecpose else _DETRPOSE,
        title=f"{'ECPose' if is_ecpose else 'DETRPose'}: {name.rstrip('/').rsplit('/', 1)[-1]}",
        name=name,
        origin=origin,
        datasets="".join(["datasets:\n", *(f"- {dataset}\n" for dataset in datasets)]) if datasets else "",
        classes=", ".join(f"{label} ({index})" for index, label in config.id2label.items()),
        keypoints=_describe_keypoints(config),
        num_queries=config.num_queries,
        visibility=f", which `keypoint_visibility` does: {_visibilities(config)}" if config.use_visibility_head else "",
        metrics=f"\n## Measured\n\n| metric | value |\n|---|---|\n{rows}" if rows else "",
    )


def _describe_keypoints(config: DETRPoseConfig) -> str:
    schema = config.keypoint_schema
    if schema.classes is None:
        return f"{schema.num_keypoints} keypoints per instance, in this order: {', '.join(schema.names)}."
    rows = [
        f"- {config.id2label[label]}: {len(own.indices)}, in this order: {', '.join(own.schema.names)}."
        for label, own in schema.classes.items()
    ]
    return "\n".join(["Keypoints per instance:", "", *rows])


def _visibilities(config: DETRPoseConfig) -> str:
    first = 0 if config.predict_absent_keypoints else 1
    return ", ".join(f"{name} ({value})" for value, name in list(enumerate(VISIBILITIES))[first:])
