"""Average precision and recall of poses, as defined by COCO and CrowdPose, for any skeleton and categories.

```python
>>> metric = CocoKeypoints("person_keypoints_val2017.json", model.config.keypoint_schema)
>>> for batch in loader:  # each process has its own share
...     outputs = model(batch["pixel_values"])
...     poses = image_processor.post_process_keypoint_detection(outputs, 0, batch["target_sizes"])
...     metric.update(batch["image_ids"], poses)
>>> metric.compute()  # the same on all processes
{'AP': 0.716, 'AP50': 0.893, ...}
>>> metric.reset()
```
"""

import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.distributed

from ..data import CocoAnnotations, read_annotations
from ..instances import Instances, box_areas
from ..keypoint_schemas import KeypointSchema
from .coco_results import coco_records

MAX_POSES = 20  # per image and category, as in both benchmarks
UNDEFINED = -1.0  # the score without ground truth, as in pycocotools

Poses = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


class KeypointMetric:
    """Collects the poses in images, on one or more processes; subclasses define the scores.

    All images passed to `update` are evaluated, including those without poses. If an image is passed again, its poses
    are replaced, so it is harmless if a data loader repeats samples to give every process the same number.

    Args:
        annotations: Path or content of a COCO-format file (see `data.read_annotations`), or the result of
            `data.read_annotations`. With a file without `annotations`, as for test sets, poses can be collected but not
            scored.
        keypoint_schema: Keypoint schema of the model, or the name of a known one ("coco", "crowdpose"); its sigmas are
            used for the OKS.
        max_poses: How many poses of each image and label are collected, the best ones. The scores use at most 20 in any
            case, as both benchmarks do.

    Raises:
        ValueError: if the file is invalid or its keypoints differ from the schema's.
    """

    _stats = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")

    def __init__(
        self,
        annotations: str | PathLike | Mapping[str, Any] | CocoAnnotations,
        keypoint_schema: KeypointSchema | dict[str, Any] | str,
        max_poses: int = MAX_POSES,
    ):
        self.max_poses = max_poses
        content = read_annotations(annotations, keypoint_schema)
        self.keypoint_schema = content.schema
        self.categories = content.categories
        self.category_ids = list(content.categories)
        self.images = {image["id"]: image for image in content.images}
        self.has_annotations = content.instances is not None
        try:
            self._library = self._import_library()
        except ImportError as error:
            message = f'metrics need `pip install "transformers-detrpose[train]"`: {error}.'
            raise ImportError(message, name=error.name) from error
        self.people = self._prepare_people(content) if self.has_annotations else []
        self.reset()

    @staticmethod
    def _import_library() -> tuple[type, type]:
        """Returns the metric library's classes for annotations and for evaluation."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval

    def reset(self):
        """Removes all poses."""
        self._predictions: dict[int, Poses] = {}

    def update(self, image_ids: Sequence[int] | torch.Tensor, predictions: Sequence[Mapping[str, Any]]):
        """Adds the poses in some images.

        Args:
            image_ids: Ids of the images in the annotation file.
            predictions: For each image, the result of `post_process_keypoint_detection` with `threshold=0`: `scores`
                (n,), `labels` (n,), which are category ids of the file, and `keypoints` (n, K, 2), x, y in pixels; as
                tensors, arrays or lists. Poses with other labels are dropped, and so are all but the best `max_poses`
                of each label. `keypoint_scores` (n, K) and `keypoint_std` (n, K, 2) are collected as well if there are
                any; they do not affect the scores.

        Raises:
            ValueError: if an image is unknown or its poses are invalid.
        """
        if len(image_ids) != len(predictions):
            raise ValueError(f"got {len(image_ids)} image ids, but predictions for {len(predictions)} images.")
        for image_id, poses in zip(map(int, image_ids), predictions, strict=True):
            if image_id not in self.images:
                raise ValueError(f"image {image_id} is not one of the {len(self.images)} `images` of the annotations.")
            self._predictions[image_id] = self._best_poses(image_id, poses)

    def gather(self) -> dict[int, Poses]:
        """Returns the poses collected on all processes since `reset`; all of them must call this.

        Returns:
            By image id, `scores` (n,) float32, `labels` (n,) int64 and `keypoints` (n, K, 2) float32, x, y in pixels,
            and also `keypoint_scores` (n, K) and `keypoint_std` (n, K, 2) float32 if they were passed to `update`; the
            same on all processes.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return dict(self._predictions)
        shares: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, self._predictions)
        return {image_id: poses for share in shares for image_id, poses in share.items()}

    def compute(self) -> dict[str, float]:
        """Scores the poses collected on all processes since `reset`; all of them must call this.

        Returns:
            Scores by name, from 0 to 1, or -1 without ground truth; the same on all processes.

        Raises:
            ValueError: if there are no images or no annotations.
        """
        return self.score(self.gather())

    def score(self, predictions: Mapping[int, Poses]) -> dict[str, float]:
        """Scores the result of `gather`, like `compute`, on this process only."""
        if not self.has_annotations:
            raise ValueError("poses cannot be scored without `annotations` in the file, which test sets lack.")
        if not predictions:
            raise ValueError("there are no images to score: pass them to `update` first.")
        if len(predictions) < len(self.images):
            logger.warning("scoring %d of the %d images in the annotations.", len(predictions), len(self.images))
        with redirect_stdout(io.StringIO()):  # pycocotools prints
            return self._score(predictions, self.category_ids)

    def score_classes(self, predictions: Mapping[int, Poses]) -> dict[str, dict[str, float]]:
        """Scores the result of `gather` for each category alone, on this process only.

        Returns:
            By the name of each category, the scores as `score` returns them; none if there is only one category, or no
            ground truth.
        """
        if len(self.categories) < 2 or not self.has_annotations or not predictions:
            return {}
        with redirect_stdout(io.StringIO()):
            scores = {id_: self._score(predictions, [id_]) for id_ in self.categories}
        names = list(self.categories.values())
        return {
            name if names.count(name) == 1 else f"{name} {id_}": scores[id_] for id_, name in self.categories.items()
        }

    def _score(self, predictions: Mapping[int, Poses], category_ids: Sequence[int]) -> dict[str, float]:
        evaluator = self.make_evaluator(predictions)
        evaluator.params.catIds = list(category_ids)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        return dict(zip(self._stats, evaluator.stats.tolist(), strict=True))

    def make_evaluator(
        self,
        predictions: Mapping[int, Poses],
        people: Sequence[dict[str, Any]] | None = None,
        library: tuple[type, type] | None = None,
    ):
        """Returns a library's evaluator, whose `params` can be changed before its `evaluate` is called.

        Args:
            predictions: The result of `gather`; these images are evaluated.
            people: Ground truth, `self.people` by default.
            library: Classes for annotations and for evaluation, by default those of the metric.
        """
        coco_class, evaluator_class = library or self._library
        ground_truth = _make_index(coco_class, self._dataset(self.people if people is None else people))
        image_ids = sorted(predictions)
        schema = self.keypoint_schema
        records = [
            record for id_ in image_ids for record in coco_records(predictions[id_], schema=schema, image_id=id_)
        ]
        # `loadRes` needs at least one record to detect the format.
        found = ground_truth.loadRes(records) if records else _make_index(coco_class, self._dataset([]))
        evaluator = _with_own_sigmas(evaluator_class, schema)(ground_truth, found, "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(schema.sigmas)
        evaluator.params.catIds = self.category_ids
        evaluator.params.imgIds = image_ids
        return evaluator

    def _dataset(self, people: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Returns people as a dictionary in COCO's format."""
        return {
            "images": [{"id": image_id} for image_id in self.images],
            "categories": [{"id": category_id} for category_id in self.category_ids],
            "annotations": list(map(self._with_own_keypoints, people)),
        }

    def _with_own_keypoints(self, person: dict[str, Any]) -> dict[str, Any]:
        """Returns an annotation with the keypoints of its category only, if categories have different ones."""
        if self.keypoint_schema.classes is None:
            return person
        own = list(self.keypoint_schema.of_class(person["category_id"]).indices)
        return {**person, "keypoints": np.reshape(person["keypoints"], (-1, 3))[own].ravel().tolist()}

    def _prepare_people(self, content: CocoAnnotations) -> list[dict[str, Any]]:
        """Returns the annotations with the fields that the libraries use, with ids counted from 1.

        The libraries treat a match with id 0 as no match.
        """
        people = content.instances.completed()
        people = people[np.isfinite(people.boxes).all(1)]  # others have neither keypoints nor a box
        # People with an area of 0 cannot be matched; they are not training targets either.
        is_counted = people.is_counted & (people.areas > 0)
        image_ids = [content.images[index]["id"] for index in people.image_index.tolist()]
        columns = {
            "id": range(1, len(people) + 1),
            "image_id": image_ids,
            "category_id": people.category_ids.tolist(),
            "keypoints": people.keypoints.reshape(len(people), 3 * self.keypoint_schema.num_keypoints).tolist(),
            # The libraries ignore people with 0 keypoints.
            "num_keypoints": np.where(is_counted, people.num_keypoints, 0).tolist(),
            "bbox": people.boxes.tolist(),
            "area": self._person_areas(people).tolist(),
            "iscrowd": people.is_crowd.astype(int).tolist(),
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _person_areas(self, people: Instances) -> np.ndarray:
        """Returns the areas (n,) for the OKS, in square pixels."""
        return people.areas

    def _best_poses(self, image_id: int, poses: Mapping[str, Any]) -> Poses:
        scores = _to_array(poses["scores"], torch.float32)
        labels = _to_array(poses["labels"], torch.int64)
        keypoints = _to_array(poses["keypoints"], torch.float32)
        expected = (len(scores), self.keypoint_schema.num_keypoints, 2)
        if keypoints.size == 0:  # an empty list has only one axis
            keypoints = keypoints.reshape(0, *expected[1:])
        if labels.shape != scores.shape or keypoints.shape != expected:
            raise ValueError(
                f"image {image_id}: `scores` (n,), `labels` (n,) and `keypoints` (n, {expected[1]}, 2) are needed, "
                f"but got {scores.shape}, {labels.shape} and {keypoints.shape}."
            )
        # pycocotools would score NaN keypoints as perfect.
        if not (np.isfinite(scores).all() and np.isfinite(keypoints).all()):
            raise ValueError(f"image {image_id}: scores and keypoints must be finite, but some are not.")
        order = np.argsort(-scores, kind="stable")
        best = np.concatenate([order[labels[order] == label][: self.max_poses] for label in self.category_ids])
        confidence = {name: values[best] for name, values in self._confidence(image_id, poses, expected).items()}
        return {"scores": scores[best], "labels": labels[best], "keypoints": keypoints[best], **confidence}

    def _confidence(self, image_id: int, poses: Mapping[str, Any], shape: tuple[int, int, int]) -> Poses:
        """Returns `keypoint_scores` and `keypoint_std` if there are any, for keypoints of the given shape."""
        shapes = {"keypoint_scores": shape[:2], "keypoint_std": shape}
        found = {name: _to_array(poses[name], torch.float32) for name in shapes if name in poses}
        for name, values in found.items():
            if values.shape != shapes[name]:
                raise ValueError(f"image {image_id}: `{name}` must be of shape {shapes[name]}, but got {values.shape}.")
        return found


class CocoKeypoints(KeypointMetric):
    """COCO's keypoint metric, computed by pycocotools.

    `compute` returns the average precision AP over OKS thresholds of 0.50, 0.55, ..., 0.95, AP50 and AP75 at a single
    threshold, APM and APL for people of 32² to 96² pixels and of more; and likewise the average recall: AR, AR50, AR75,
    ARM, ARL. People without a labeled keypoint and crowds are ignored. Scores are averaged over categories, each of
    which is scored by its own keypoints and sigmas. See `KeypointMetric` for the arguments.
    """


class CrowdPoseKeypoints(KeypointMetric):
    """CrowdPose's keypoint metric, computed by faster-coco-eval.

    `compute` returns AP, AP50, AP75, AR, AR50 and AR75 as COCO defines them, except that areas are 0.53 times those of
    the bounding boxes, and AP_easy, AP_medium and AP_hard for images with a low, medium and high crowd index.

    Args:
        annotations: As for `KeypointMetric`; every image must have a `crowdIndex`, from 0 to 1.
        keypoint_schema: As for `KeypointMetric`.
        crowd_thresholds: Minimum crowd index of medium and of hard images. The paper states 0.1 and 0.8, but
            CrowdPose's code, and hence all published results, use 0.2 and 0.8.

    Raises:
        ValueError: also if an image has no `crowdIndex`.
    """

    def __init__(
        self,
        annotations: str | PathLike | Mapping[str, Any] | CocoAnnotations,
        keypoint_schema: KeypointSchema | dict[str, Any] | str,
        crowd_thresholds: tuple[float, float] = (0.2, 0.8),
    ):
        super().__init__(annotations, keypoint_schema)
        self.crowd_thresholds = crowd_thresholds
        plain = [image_id for image_id, image in self.images.items() if "crowdIndex" not in image]
        if plain and self.has_annotations:
            raise ValueError(
                f"image {plain[0]} has no `crowdIndex`, by which CrowdPose splits easy and hard images: "
                "use the COCO metric for other datasets."
            )

    @staticmethod
    def _import_library() -> tuple[type, type]:
        # The same scores as pycocotools in a quarter of the time, as four sets of images are scored.
        import faster_coco_eval

        return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster

    def _score(self, predictions: Mapping[int, Poses], category_ids: Sequence[int]) -> dict[str, float]:
        overall = super()._score(predictions, category_ids)
        scores = {name: overall[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")}
        for level, ids in self._split(sorted(predictions)).items():
            part = {image_id: predictions[image_id] for image_id in ids}
            scores[f"AP_{level}"] = super()._score(part, category_ids)["AP"] if part else UNDEFINED
        return scores

    def _split(self, image_ids: list[int]) -> dict[str, list[int]]:
        medium, hard = self.crowd_thresholds
        index = {image_id: self.images[image_id]["crowdIndex"] for image_id in image_ids}
        return {
            "easy": [image_id for image_id in image_ids if index[image_id] < medium],
            "medium": [image_id for image_id in image_ids if medium <= index[image_id] < hard],
            "hard": [image_id for image_id in image_ids if hard <= index[image_id]],
        }

    def _person_areas(self, people: Instances) -> np.ndarray:
        return box_areas(people.boxes)


# By their name in commands and in the `evaluate` module.
METRICS = {"coco": CocoKeypoints, "crowdpose": CrowdPoseKeypoints}


def _to_array(values, dtype: torch.dtype) -> np.ndarray:
    return torch.as_tensor(values, dtype=dtype).detach().cpu().numpy()


def _with_own_sigmas(evaluator_class: type, schema: KeypointSchema) -> type:
    """Returns a library's evaluator that uses the sigmas of each category, if categories have different keypoints."""
    if schema.classes is None:
        return evaluator_class

    class Evaluator(evaluator_class):
        def computeOks(self, imgId, catId):  # noqa: N802, N803, the library's names
            self.params.kpt_oks_sigmas = np.array(schema.of_class(catId).schema.sigmas)
            return super().computeOks(imgId, catId)

    return Evaluator


def _make_index(coco_class: type, dataset: dict[str, list[dict[str, Any]]]):
    """Returns the library's index of a COCO-format dictionary."""
    index = coco_class()
    index.dataset = dataset
    with redirect_stdout(io.StringIO()):
        index.createIndex()
    return index
