"""Precision and recall for parts of the ground truth, as pycocotools computes them."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou

from .keypoint_metrics import UNDEFINED, KeypointMetric, Poses
from .matching import ANY_AREA, People

# √area in pixels. COCO's medium people have 32 to 96, its large people more.
_SIZES = (32, 64, 96, 128, 256)
# The largest intersection over union of a person's box with another person's; that of neighbors is rarely 0.
_OVERLAPS = (0.05, 0.2, 0.4)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall; -1 where there is no ground truth.

    Args:
        thresholds (`np.ndarray` of shape `(T,)`): OKS thresholds 0.50, 0.55, ..., 0.95.
        recalls (`np.ndarray` of shape `(R,)`): 0, 0.01, ..., 1.
        precision (`np.ndarray` of shape `(T, R, C, A)`): at each recall, for C categories and A ranges of areas.
        recall (`np.ndarray` of shape `(T, C, A)`): of all poses.
    """

    thresholds: np.ndarray
    recalls: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    def average_precision(self, threshold: float | None = None, area: int = 0) -> float:
        """Returns the average precision at an OKS threshold, or its mean over all of them."""
        chosen = slice(None) if threshold is None else np.isclose(self.thresholds, threshold)
        return _mean_of_defined(self.precision[chosen, ..., area])

    def average_recall(self, area: int = 0) -> float:
        """Returns the recall, averaged over OKS thresholds."""
        return _mean_of_defined(self.recall[..., area])

    def curves(self) -> np.ndarray:
        """Returns the precision (T, R) for people of any area, averaged over categories; NaN without ground truth."""
        precision = self.precision[..., 0]
        is_defined = precision > UNDEFINED
        with np.errstate(invalid="ignore"):
            return np.where(is_defined, precision, 0).sum(axis=-1) / is_defined.sum(axis=-1)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def precision_recall(
    metric: KeypointMetric,
    predictions: Mapping[int, Poses],
    counted: np.ndarray | None = None,
    areas: Sequence[tuple[float, float]] = (ANY_AREA,),
) -> PrecisionRecall:
    """Computes precision and recall by faster-coco-eval, which does it as pycocotools in a fraction of the time.

    Args:
        metric: its ground truth and areas are used.
        predictions: the result of `metric.gather`.
        counted: (p,) bool, the people to count, by default all. The others are ignored: poses of them are neither right
            nor wrong.
        areas: ranges of areas in square pixels, including both ends. People and wrong poses outside are ignored.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    people = metric.people
    if counted is not None:
        # The libraries ignore people with 0 keypoints.
        people = [
            person if is_counted else {**person, "num_keypoints": 0}
            for person, is_counted in zip(people, counted, strict=True)
        ]
    with redirect_stdout(io.StringIO()):
        evaluator = metric.make_evaluator(predictions, people, (COCO, COCOeval_faster))
        params = evaluator.params
        params.areaRng, params.areaRngLbl = [list(area) for area in areas], [str(area) for area in areas]
        evaluator.evaluate()
        evaluator.accumulate()
    shape = (len(params.iouThrs), len(params.recThrs), len(metric.category_ids), len(areas))
    precision = np.asarray(evaluator.eval["precision"]).reshape(shape)
    recall = np.asarray(evaluator.eval["recall"]).reshape(shape[0], *shape[2:])
    return PrecisionRecall(np.array(params.iouThrs), np.array(params.recThrs), precision, recall)


@dataclass(frozen=True)
class Group:
    """The scores for some of the people.

    Args:
        name (`str`): which people.
        num_people (`int`): how many.
        average_precision (`float`): averaged over OKS thresholds; -1 without people.
        average_recall (`float`): the same.
    """

    name: str
    num_people: int
    average_precision: float
    average_recall: float


def by_size(metric: KeypointMetric, predictions: Mapping[int, Poses], people: People) -> list[Group]:
    """Returns the scores by the area of people; only wrong poses of the same size count."""
    bounds = [0, *_SIZES, ANY_AREA[1] ** 0.5]
    areas = [(low**2, high**2) for low, high in zip(bounds, bounds[1:], strict=False)]
    found = precision_recall(metric, predictions, areas=areas)
    names = [f"up to {_SIZES[0]}²", *(f"{low}² to {high}²" for low, high in zip(_SIZES, _SIZES[1:], strict=False))]
    names.append(f"over {_SIZES[-1]}²")
    groups = []
    for index, (name, (low, high)) in enumerate(zip(names, areas, strict=True)):
        number = int((people.is_counted & (people.areas >= low) & (people.areas <= high)).sum())
        groups.append(Group(name, number, found.average_precision(area=index), found.average_recall(index)))
    return groups


def by_visible_keypoints(metric: KeypointMetric, predictions: Mapping[int, Poses], people: People) -> list[Group]:
    """Returns the scores by the number of visible keypoints, in up to four groups; all wrong poses count in each."""
    visible = (people.visibility == 2).sum(axis=1)
    num_keypoints = metric.keypoint_schema.num_keypoints
    parts = np.array_split(np.arange(num_keypoints + 1), min(4, num_keypoints + 1))
    names = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    return _split(metric, predictions, people, names, [np.isin(visible, part) for part in parts])


def by_crowding(metric: KeypointMetric, predictions: Mapping[int, Poses], people: People) -> list[Group]:
    """Returns the scores by the overlap of boxes with other people's; all wrong poses count in each group."""
    overlap = largest_overlaps(people)
    bounds = [-np.inf, *_OVERLAPS, np.inf]
    names = [f"up to {_OVERLAPS[0]}", *(f"{a} to {b}" for a, b in zip(_OVERLAPS, _OVERLAPS[1:], strict=False))]
    names.append(f"over {_OVERLAPS[-1]}")
    chosen = [(overlap > low) & (overlap <= high) for low, high in zip(bounds, bounds[1:], strict=False)]
    return _split(metric, predictions, people, names, chosen)


def largest_overlaps(people: People) -> np.ndarray:
    """Returns the largest intersection over union (p,) of each box with that of anybody else in the same image."""
    overlaps = np.zeros(len(people))
    for image_id in np.unique(people.image_ids):
        index = np.flatnonzero((people.image_ids == image_id) & ~people.is_crowd)
        if len(index) > 1:
            boxes = box_convert(torch.from_numpy(people.boxes[index]), "xywh", "xyxy")
            overlaps[index] = box_iou(boxes, boxes).nan_to_num().fill_diagonal_(0).amax(dim=1).numpy()
    return overlaps


def _split(metric, predictions, people: People, names: list[str], chosen: list[np.ndarray]) -> list[Group]:
    groups = []
    for name, is_in in zip(names, chosen, strict=True):
        counted = people.is_counted & is_in
        found = precision_recall(metric, predictions, counted)
        groups.append(Group(name, int(counted.sum()), found.average_precision(), found.average_recall()))
    return groups
