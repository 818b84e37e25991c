"""Small COCO-format datasets, drawn here: every keypoint is the middle of a square in a colour of its own."""

import json

import numpy as np
import torch
from PIL import Image

from transformers_detrpose.keypoint_schemas import KeypointSchema

SCHEMA = KeypointSchema(names=("left_hand", "right_hand", "head"), edges=((0, 2), (1, 2)), flip_pairs=((0, 1),))
CATEGORY = {"id": 1, "name": "person", "keypoints": list(SCHEMA.names), "skeleton": [[1, 3], [2, 3]]}
HALF = 5  # squares have 11 pixels


def draw_person(size_wh, keypoints):
    """Black image with a red, a green and a blue square around the first, second and third keypoint."""
    pixels = np.zeros((size_wh[1], size_wh[0], 3), dtype=np.uint8)
    for channel, (x, y, _) in enumerate(keypoints):
        pixels[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1, channel] = 255
    return Image.fromarray(pixels)


def annotation(keypoints, image_id, annotation_id, **fields):
    xy = np.array(keypoints, dtype=float)[:, :2]
    x1, y1, x2, y2 = (*(xy.min(0) - HALF), *(xy.max(0) + HALF + 1))
    made = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": 0.5 * (x2 - x1) * (y2 - y1),
    }
    made |= {"keypoints": np.ravel(keypoints).tolist(), "bbox": [x1, y1, x2 - x1, y2 - y1]}
    return {**made, **fields}


def find_square(image, channel, near, radius):
    """Middle x, y (counted from the first pixel's top left corner) of the colour `channel` near a point."""
    height, width = image.shape[-2:]
    x0, y0 = (max(0, int(value) - radius) for value in near)
    window = image[:, y0 : y0 + 2 * radius + 1, x0 : x0 + 2 * radius + 1].double()
    weight = (window[channel] - window.sum(0) + window[channel]).clamp(min=0)
    assert weight.sum() > 0, f"no colour {channel} near {near} in an image of {width}x{height} pixels"
    ys, xs = torch.meshgrid(*(torch.arange(length) for length in weight.shape), indexing="ij")
    return torch.stack([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum() + torch.tensor([x0, y0]) + 0.5


class Folder:
    """A dataset on disk, in the making."""

    def __init__(self, path):
        self.path = path
        self.images, self.annotations, self.categories = [], [], [CATEGORY]
        (path / "images").mkdir()

    def add_image(self, size_wh=(64, 48), image=None, **fields):
        image_id = fields.get("id", len(self.images) + 1)
        entry = {"id": image_id, "file_name": f"{len(self.images)}.png", "width": size_wh[0], "height": size_wh[1]}
        self.images.append({**entry, **fields})
        (image or Image.new("RGB", size_wh)).save(self.path / "images" / entry["file_name"])
        return image_id

    def add_person(self, size_wh, keypoints, **fields):
        """Adds an image with one person drawn in it."""
        image_id = self.add_image(size_wh, draw_person(size_wh, keypoints))
        return self.annotate(keypoints, image_id, **fields)

    def annotate(self, keypoints, image_id, **fields):
        self.annotations.append(annotation(keypoints, image_id, len(self.annotations) + 1, **fields))
        return self.annotations[-1]

    @property
    def arguments(self):
        """Writes the annotation file; returns the folder of images and the file."""
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        file = self.path / "annotations.json"
        file.write_text(json.dumps(content))
        return self.path / "images", file
