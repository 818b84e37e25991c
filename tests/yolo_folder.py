"""Small YOLO pose datasets, made here."""

import numpy as np
import yaml
from PIL import Image

# A box, and three keypoints of which the last is not labelled, in an image of 100 x 50 pixels.
LINE = "0 0.5 0.4 0.6 0.4 0.2 0.2 2 0.8 0.6 1 0 0 0"
SIZE_WH = (100, 50)


class YoloFolder:
    """A YOLO dataset on disk, in the making."""

    def __init__(self, path, **fields):
        self.path = path
        self.content = {"train": "images/train", "val": "images/val", "names": ["bird"], "kpt_shape": [3, 3]}
        self.content |= {"flip_idx": [0, 2, 1], **fields}

    def add(self, name, *lines, labels=None, size_wh=SIZE_WH):
        """Adds an image, `images/train/1.png` for "train/1.png", and its label file if there are lines."""
        image = self.path / "images" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        seed = len(list(self.path.rglob("*.png")))
        pixels = np.random.default_rng(seed).integers(0, 255, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
        if lines or labels is not None:
            file = (self.path / "labels" / name).with_suffix(".txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(labels if labels is not None else "\n".join(lines).encode())
        return image

    @property
    def file(self):
        """Writes the `data.yaml`."""
        file = self.path / "data.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in self.content.items() if value is not ...}))
        return file
