"""Large images: their tiles, which the model sees besides the whole image, and the poses of all tiles merged.

A model sees every image in one size, in which small people of a large image vanish. Tiles show them larger. Tiles are
merged by keypoint similarity, not by boxes, so that people who embrace remain two.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from .keypoint_schemas import KeypointSchema
from .pose_arrays import Poses, select, to_array
from .video.duplicates import find_distinct, remove_duplicates

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels

# Minimum keypoint similarity of poses that are the same person: in two tiles, in one of which the person may be small
# and the pose therefore inaccurate, and in one tile, in which the model has told people apart already.
SAME_PERSON, SAME_PERSON_IN_A_TILE = 0.2, 0.5
# A pose whose box comes closer than this to an inner border of its tile is cut off; relative to its longer side. Heads
# and feet reach that far beyond the outermost keypoints.
BODY_MARGIN = 0.05
MOST_POSES = 1000  # of an image: what the best ones leave is noise, and comparing takes the square of their number


@dataclass(frozen=True)
class Tiles:
    """How large images are divided into square tiles that overlap.

    Besides tiles of `size` pixels there are those of twice the size, and so on up to the whole image, so that people of
    any size are whole in one of them: a person of at most `overlap` times the size of a tile always is.

    Args:
        size: Height and width of the smallest tiles in pixels of the image, at least 1.
        overlap: Minimum overlap of neighboring tiles as a fraction of their size, from 0 to 0.9.

    Raises:
        ValueError: if an argument is out of range.
    """

    size: int
    overlap: float = 0.25

    def __post_init__(self):
        if not self.size >= 1:
            raise ValueError(f"`size` must be at least 1 pixel, but got {self.size}.")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"`overlap` must be from 0 to 0.9, but got {self.overlap}.")

    def boxes(self, size_hw: tuple[int, int]) -> list[Box]:
        """Returns the boxes of the whole image, which is the first, and of its tiles.

        Args:
            size_hw: Height and width of the image in pixels. One that fits into a tile has no tiles.
        """
        height, width = size_hw
        boxes, size = [whole_image(size_hw)], self.size
        while size < max(height, width):
            rows, columns = (_starts(length, size, self.overlap) for length in size_hw)
            boxes += [(x, y, min(x + size, width), min(y + size, height)) for y in rows for x in columns]
            size *= 2
        return boxes

    def crops(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Returns what is in the boxes of an image (channels, height, width)."""
        return [crop(image, box) for box in self.boxes(tuple(image.shape[-2:]))]


def whole_image(size_hw: tuple[int, int]) -> Box:
    """Returns the box of an image, given its (height, width) in pixels."""
    return (0, 0, size_hw[1], size_hw[0])


def crop(image: Image.Image | np.ndarray | torch.Tensor, box: Box) -> Image.Image | np.ndarray | torch.Tensor:
    """Returns a part of an image: PIL, an array (height, width, channels) or a tensor (channels, height, width)."""
    if isinstance(image, Image.Image):
        return image.crop(box)
    x1, y1, x2, y2 = box
    return image[y1:y2, x1:x2] if isinstance(image, np.ndarray) else image[:, y1:y2, x1:x2]


def predict_tiles(
    model: Callable[[torch.Tensor], Any],
    image_processor: Any,
    pixel_values: torch.Tensor,
    boxes: Sequence[Sequence[Box]],
    threshold: float,
    batch_size: int | None = None,
) -> list[Poses]:
    """Returns the poses of images, given what the model shall see of each.

    Args:
        model: Takes `pixel_values` and returns `logits` and `pred_keypoints`.
        image_processor: The `DETRPoseImageProcessor` of the model.
        pixel_values: (m, 3, height, width), all crops of the first image, then those of the second, and so on.
        boxes: For each image, the boxes of its crops.
        threshold: Minimum score of a pose.
        batch_size: Maximum number of crops that the model sees at once; all if not given.

    Returns:
        Per image the poses, as `post_process_keypoint_detection` returns them; on the CPU if they had to be merged.
    """
    sizes_hw = [(y2 - y1, x2 - x1) for image in boxes for x1, y1, x2, y2 in image]
    batch_size = batch_size or len(sizes_hw)
    results = []
    for start in range(0, len(sizes_hw), batch_size):
        part = slice(start, start + batch_size)
        outputs = model(pixel_values[part])
        results += image_processor.post_process_keypoint_detection(outputs, threshold, target_sizes=sizes_hw[part])
    crops = iter(results)
    return [merge_poses(list(islice(crops, len(image))), image, image_processor.keypoint_schema) for image in boxes]


def merge_poses(
    poses: Sequence[Poses], boxes: Sequence[Box], schema: KeypointSchema | None, similarity: float = SAME_PERSON
) -> Poses:
    """Merges the poses of an image's tiles: without those cut off by a tile, and with each person once.

    Poses of one tile must be more similar to count as one person than poses of two, so that people who are close to
    each other and whole in the same tile remain.

    Args:
        poses: The poses in each tile, as `post_process_keypoint_detection` returns them, in pixels of the tile.
        boxes: The boxes of the tiles, as `Tiles.boxes` returns them; the first is the whole image.
        schema: The keypoints of the model, whose sigmas say what is similar.
        similarity: Minimum keypoint similarity, from 0 to 1, of poses from two tiles that are the same person, of which
            only the best is kept.

    Returns:
        The poses in pixels of the image, best first; those of the image itself if there are no tiles.

    Raises:
        ValueError: if there are tiles, but no schema.
    """
    if len(boxes) == 1:
        return poses[0]
    if schema is None:
        raise ValueError("the poses of tiles cannot be merged without the `keypoint_schema` of the image processor.")
    moved = [_move(each, box, boxes[0]) for each, box in zip(poses, boxes, strict=True)]
    moved = [remove_duplicates(each, schema, SAME_PERSON_IN_A_TILE) for each in moved]
    joined = {name: torch.cat([each[name] for each in moved]) for name in moved[0]}
    tiles = torch.repeat_interleave(torch.tensor([len(each["scores"]) for each in moved]))
    order = joined["scores"].argsort(descending=True, stable=True)[:MOST_POSES]
    joined, tiles = select(joined, order), tiles[order].numpy()
    if not len(tiles):
        return joined
    keypoints, scores, labels = (to_array(joined[name]) for name in ("keypoints", "scores", "labels"))
    return select(joined, find_distinct(keypoints, scores, labels, schema, similarity, tiles))


def _move(poses: Poses, box: Box, image: Box) -> Poses:
    """Returns the poses of a tile in pixels of the image, on the CPU, without those that the tile cuts off."""
    poses = {name: values.cpu() for name, values in poses.items()}
    x1, y1, x2, y2 = box
    corner = torch.tensor([x1, y1])
    boxes = poses["boxes"] + corner.repeat(2)
    margin = BODY_MARGIN * (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    # Signed distances from the four borders; those of the image cut nobody off who is whole anywhere else.
    distances = torch.stack([boxes[:, 0] - x1, boxes[:, 1] - y1, x2 - boxes[:, 2], y2 - boxes[:, 3]], dim=1)
    is_inner = torch.tensor([edge != limit for edge, limit in zip(box, image, strict=True)])
    is_whole = ~(is_inner & (distances < margin[:, None])).any(dim=1)
    return select({**poses, "keypoints": poses["keypoints"] + corner, "boxes": boxes}, is_whole)


def _starts(length: int, size: int, overlap: float) -> list[int]:
    """Returns where tiles begin along one side of an image, evenly spread."""
    step = max(1, math.floor(size * (1 - overlap)))
    count = 1 + max(0, math.ceil((length - size) / step))
    return np.linspace(0, max(0, length - size), count).round().astype(int).tolist()
