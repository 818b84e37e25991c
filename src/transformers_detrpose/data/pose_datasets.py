"""Datasets of people with keypoints: COCO-format files, YOLO datasets and Hugging Face Hub datasets."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvF

from ..images import load_rgb_image, open_image
from ..instances import Instances, Problems, is_id, parse_instances
from ..keypoint_schemas import KeypointSchema
from .annotations import CocoAnnotations, read_annotations
from .people import fit_to_image, group_by_image

Sample = dict[str, Any]


class PoseDataset(Dataset):
    """Images with the people in them. `dataset[index]` is a sample, a dictionary for one image with n people:

    - `image`: `tv_tensors.Image` of shape (3, height, width), uint8, upright RGB.
    - `keypoints`: `tv_tensors.KeyPoints` of shape (n, K, 2), float32, x, y in pixels; meaningless where not labeled.
    - `visibility` (n, K) int64: 0 not labeled, 1 hidden, 2 visible.
    - `class_labels` (n,) int64: category ids.
    - `area` (n,) float32: area of the person in square pixels; 0.53 times the area of the box if the dataset has none.
    - `boxes`: `tv_tensors.BoundingBoxes` of shape (n, 4), float32, x1, y1, x2, y2 in pixels.
    - `image_id` (`int`) and `orig_size` (height, width of the image in pixels).

    Crowds and people without a labeled keypoint are left out, so n may be 0. Other repairs are listed in the table of
    `check_dataset`, which should be called once before training. A keypoint at (3, 5) is in column 3 and row 5, as in
    COCO.

    Args:
        schema: the keypoints.
        id2label: names of the labels 0, 1, ..., as in a model configuration.
        image_ids: one integer per image.
        sizes_hw: (height, width) of each image in pixels according to the dataset, `None` if unknown.
        instances: the annotations.
        transform: called with each sample, returns a sample; transforms of `torchvision.transforms.v2` work, except
            that flips do not swap left and right, and `area` is not updated.
        only_with_people: leave out images without people to train on, as the paper does.
    """

    # Whether the sizes are those of the images themselves, so that they need not be compared.
    has_image_sizes = False

    def __init__(
        self,
        schema: KeypointSchema,
        id2label: dict[int, str],
        image_ids: list[int],
        sizes_hw: list[tuple[int, int] | None],
        instances: Instances,
        transform: Callable[[Sample], Sample] | None = None,
        only_with_people: bool = False,
    ):
        self.schema = schema
        self.id2label = id2label
        self.image_ids = image_ids
        self.sizes_hw = sizes_hw
        self.people = group_by_image(instances, len(image_ids))
        self.transform = transform
        counts = self.people.starts.diff()
        # The image index of each sample.
        self.shown = counts.nonzero()[:, 0] if only_with_people else torch.arange(len(counts))

    def open_image(self, image_index: int) -> Image.Image:
        """Opens an image without decoding it."""
        raise NotImplementedError

    def image_name(self, image_index: int) -> str:
        """Returns the name of an image for messages."""
        return f"image {self.image_ids[image_index]}"

    def __len__(self) -> int:
        return len(self.shown)

    def __getitem__(self, index: int) -> Sample:
        image_index = int(self.shown[index])
        image = self._load_image(image_index)
        size_hw = (image.height, image.width)
        people, remains, _ = fit_to_image(self.people.of_image(image_index), torch.tensor(size_hw))
        people = people[remains]
        sample = {
            "image": tv_tensors.Image(tvF.pil_to_tensor(image)),
            "keypoints": tv_tensors.KeyPoints(people.keypoints, canvas_size=size_hw),
            "visibility": people.visibility,
            "class_labels": people.class_labels,
            "area": people.area,
            "boxes": tv_tensors.BoundingBoxes(people.boxes, format="XYXY", canvas_size=size_hw),
            "image_id": self.image_ids[image_index],
            "orig_size": size_hw,
        }
        return sample if self.transform is None else self.transform(sample)

    def _load_image(self, image_index: int) -> Image.Image:
        try:
            image = load_rgb_image(self.open_image(image_index))
        except Exception as error:  # Pillow's decoders raise almost anything for a corrupt file
            raise ValueError(
                f"cannot read {self.image_name(image_index)}: {error}. `check_dataset` finds all such images."
            ) from error
        expected = self.sizes_hw[image_index]
        if expected is not None and expected != (image.height, image.width):
            raise ValueError(
                f"{self.image_name(image_index)} should have the height and width {expected}, but upright it has "
                f"{(image.height, image.width)}: its annotations would be in the wrong places."
            )
        return image


class CocoPoseDataset(PoseDataset):
    """A folder of images and an annotation file in COCO's format (COCO, CrowdPose or your own), or a YOLO dataset.

    Args:
        image_folder: folder that the `file_name` of each image is relative to; `None` for a YOLO dataset.
        annotation_file: path of the file, or the result of `read_annotations`, which documents the formats. Of the path
            of a YOLO dataset, the validation images are read.
        schema: the keypoints, such as `model.config.keypoint_schema`, a name or a dictionary; see `read_annotations`.
        transform: see `PoseDataset`.
        only_with_people: see `PoseDataset`.

    Raises:
        FileNotFoundError: if the folder or the file does not exist.
        DataError: a `ValueError`, if the file is invalid, or its keypoints are not those of the schema.
    """

    def __init__(
        self,
        image_folder: str | os.PathLike | None,
        annotation_file: str | os.PathLike | CocoAnnotations,
        schema: KeypointSchema | dict | str | None = None,
        transform: Callable[[Sample], Sample] | None = None,
        only_with_people: bool = False,
    ):
        if image_folder is not None and not os.path.isdir(image_folder):  # before the slow reading
            raise FileNotFoundError(f"image folder {image_folder} does not exist or is not a folder.")
        content = read_annotations(annotation_file, schema).located(image_folder)
        self.image_folder = content.image_folder
        self.file_names = [image["file_name"] for image in content.images]
        super().__init__(
            schema=content.schema,
            id2label=content.id2label,
            image_ids=[int(image["id"]) for image in content.images],
            sizes_hw=[_size_hw(image) for image in content.images],
            instances=_instances_of(content),
            transform=transform,
            only_with_people=only_with_people,
        )
        self.has_image_sizes = content.has_image_sizes

    def open_image(self, image_index: int) -> Image.Image:
        return open_image(os.path.join(self.image_folder, self.file_names[image_index]))

    def image_name(self, image_index: int) -> str:
        return f"image {self.image_ids[image_index]} ({self.file_names[image_index]})"


class HubPoseDataset(PoseDataset):
    """A `datasets.Dataset` with the usual columns for object detection, and keypoints.

    Args:
        dataset: a dataset with a column of images and one of people, which holds, as lists of equal length or as a list
            of dictionaries, `keypoints` (x, y, visibility for each of K keypoints, flat or nested), and optionally
            `category` or `category_id` (0 if missing), `bbox` (x, y, width, height), `area`, `iscrowd` and `id`;
            lengths in pixels. Columns `image_id`, `height` and `width` are used if present.
        schema: the keypoints, or a name or dictionary.
        image_column: name of the column of images.
        people_column: name of the column of people; `objects` or `annotations` if not given.
        id2label: names of the category ids; read from the column's `ClassLabel` if it is one, else `{0: "person"}`.
        transform: see `PoseDataset`.
        only_with_people: see `PoseDataset`.

    Raises:
        ValueError: if a column is missing, or annotations are invalid; see `read_annotations`.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> dataset = HubPoseDataset(load_dataset("owner/name", split="train"), schema="coco")
    ```
    """

    def __init__(
        self,
        dataset,
        schema: KeypointSchema | dict | str,
        image_column: str = "image",
        people_column: str | None = None,
        id2label: dict[int, str] | None = None,
        transform: Callable[[Sample], Sample] | None = None,
        only_with_people: bool = False,
    ):
        from datasets import Image as ImageFeature  # an optional dependency

        schema = KeypointSchema.of(schema)
        people_column = _find_column(dataset, (people_column,) if people_column else ("objects", "annotations"))
        image_column = _find_column(dataset, (image_column,))
        id2label = id2label or _class_names(dataset.features[people_column]) or {0: "person"}
        small_columns = [name for name in ("image_id", "height", "width") if name in dataset.column_names]
        rows = list(dataset.with_format(None).select_columns([people_column, *small_columns]))
        # Encoded images can be opened without decoding them.
        self.images = (
            dataset.with_format(None)
            .select_columns([image_column])
            .cast_column(image_column, ImageFeature(decode=False))
        )
        self.image_column = image_column

        ids = [row.get("image_id") for row in rows]
        are_usable = all(map(is_id, ids)) and len(set(ids)) == len(ids)
        super().__init__(
            schema=schema,
            id2label=id2label,
            image_ids=ids if are_usable else list(range(len(rows))),
            sizes_hw=[_size_hw(row) for row in rows],
            instances=_read_rows([row[people_column] for row in rows], schema, set(id2label)),
            transform=transform,
            only_with_people=only_with_people,
        )

    def open_image(self, image_index: int) -> Image.Image:
        image = self.images[image_index][self.image_column]
        return open_image(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"])

    def image_name(self, image_index: int) -> str:
        return f"image {self.image_ids[image_index]} (row {image_index})"


def _instances_of(content: CocoAnnotations) -> Instances:
    """Returns the annotations of a file; empty for a test set."""
    if content.instances is not None:
        return content.instances
    return parse_instances([], [], content.schema.num_keypoints, Problems())


def _size_hw(image: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (int(height), int(width)) if height and width else None


def _read_rows(rows: list, schema: KeypointSchema, categories: set[int]) -> Instances:
    """Reads the column of people, or raises `DataError`."""
    people, names, image_index = [], [], []
    for index, row in enumerate(rows):
        for number, person in enumerate(_list_people(row)):
            people.append(person)
            names.append(f"person {person.get('id', number)} of row {index}")
            image_index.append(index)
    problems = Problems("dataset")
    instances = parse_instances(people, names, schema.num_keypoints, problems, categories, image_index, schema.classes)
    problems.raise_any()
    return instances


def _find_column(dataset, names: Iterable[str]) -> str:
    found = next((name for name in names if name in dataset.column_names), None)
    if found is None:
        raise ValueError(f"the dataset needs a column {' or '.join(map(repr, names))}; it has {dataset.column_names}.")
    return found


def _class_names(feature) -> dict[int, str] | None:
    """Returns the names of a `ClassLabel` called `category` or `category_id` inside a column of people."""
    feature = getattr(feature, "feature", feature[0] if isinstance(feature, list) else feature)
    for key in ("category", "category_id"):
        names = getattr(_inner(feature.get(key)) if isinstance(feature, Mapping) else None, "names", None)
        if names:
            return dict(enumerate(names))
    return None


def _inner(feature):
    return getattr(feature, "feature", feature)


def _list_people(people: Mapping[str, list] | list[Mapping] | None) -> Iterator[dict[str, Any]]:
    """Yields the people of a row as COCO annotations, whether stored by column or by person."""
    if isinstance(people, Mapping):
        columns = {key: values for key, values in people.items() if values is not None}
        people = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for person in people or ():
        label = person.get("category_id", person.get("category", 0))
        yield {**person, "category_id": label}
