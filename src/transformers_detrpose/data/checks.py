"""Checks the images of a dataset and the annotations in them before training."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..images import load_rgb_image, upright_size_hw
from ..instances import DataError
from .people import fit_to_image
from .pose_datasets import PoseDataset

logger = logging.getLogger(__name__)

_SHOWN = 5  # names per kind of finding in a report

# Maps each kind of finding, by a short name, to the annotations or images concerned.
Findings = dict[str, list[str]]


@dataclass(frozen=True)
class Defect:
    """A kind of finding: its description, and how it is repaired (`None` if it must be repaired by hand)."""

    found: str
    repair: str | None = None


DEFECTS = {
    "image_missing": Defect("image files that do not exist"),
    "image_unreadable": Defect("image files that cannot be read"),
    "image_size": Defect("images that upright have another size than the annotation file says"),
    "keypoint_outside": Defect(
        "people with keypoints more than a pixel outside the image",
        "these count as not labelled, and people without any other are left out",
    ),
    "box_outside": Defect("boxes more than a pixel outside the image", "clipped"),
    "box_empty": Defect("boxes that are missing, empty or wholly outside the image", "the box around the keypoints"),
    "area_zero": Defect("people with an area of 0 or less", "0.53 times the area of the box"),
    "no_extent": Defect("people whose area, box and keypoints cover nothing", "left out"),
}


@dataclass
class DatasetReport:
    """The findings of `check_dataset`; `str(report)` is human-readable.

    Args:
        num_images: images in the dataset.
        num_people: people used for training.
        findings: for each kind of finding, a key of `DEFECTS`, all images or annotations concerned.
    """

    num_images: int
    num_people: int
    findings: Findings

    @property
    def refused(self) -> Findings:
        """`dict[str, list[str]]`: the findings that must be repaired by hand."""
        return {kind: names for kind, names in self.findings.items() if DEFECTS[kind].repair is None}

    @property
    def repaired(self) -> Findings:
        """`dict[str, list[str]]`: the findings that are repaired in each sample."""
        return {kind: names for kind, names in self.findings.items() if DEFECTS[kind].repair is not None}

    def __str__(self) -> str:
        lines = [f"images: {self.num_images}, people with labelled keypoints: {self.num_people}"]
        sections = (("to be repaired by hand:", self.refused), ("repaired in the samples:", self.repaired))
        for title, findings in sections:
            lines += [title] if findings else []
            lines += [_line(kind, names) for kind, names in findings.items()]
        return "\n".join(lines)


def _line(kind: str, names: list[str]) -> str:
    defect = DEFECTS[kind]
    repair = f" -> {defect.repair}" if defect.repair else ""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"  {defect.found}{repair}: {len(names)} ({shown})"


def check_dataset(
    dataset: PoseDataset, images: str | None = "header", num_threads: int | None = None, progress: bool = True
) -> DatasetReport:
    """Checks all images of a dataset and how its people fit into them, and reports all findings together.

    Malformed annotations were already rejected when the dataset was created; see `read_annotations`.

    | found | what happens |
    |---|---|
    | image file missing or unreadable (`image_missing`, `image_unreadable`) | refused |
    | upright image size differs from the annotation file (`image_size`) | refused |
    | keypoint more than a pixel outside the image (`keypoint_outside`) | not labeled |
    | keypoint up to a pixel outside | moved to the border |
    | box partly outside the image (`box_outside`) | clipped |
    | box missing, empty or wholly outside (`box_empty`) | box around the labeled keypoints |
    | no area in the dataset | 0.53 x area of the box, unclipped |
    | area of 0 or less (`area_zero`) | likewise |
    | no area, no box, and keypoints without extent (`no_extent`) | person left out |
    | crowd, no `keypoints`, or none of them labeled | no target; not checked |

    Args:
        dataset: the dataset.
        images: "header" opens every image and compares its size, unless the sizes were read from there; "decode" also
            decodes it, which takes a hundred times as long and is the only way to find truncated files; `None` checks
            annotations only.
        num_threads: number of images checked in parallel; twice the number of processors if not given.
        progress: show a progress bar.

    Returns:
        The report. Its repairs are logged as a warning.

    Raises:
        DataError: a `ValueError`, if anything must be repaired by hand; the message is the full report.
    """
    if images not in ("header", "decode", None):
        raise ValueError(f"`images` must be 'header', 'decode' or None, but got {images!r}.")
    findings: Findings = {}
    sizes_hw = list(dataset.sizes_hw)
    if images == "decode" or (images == "header" and not dataset.has_image_sizes):
        sizes_hw = _check_images(dataset, images == "decode", num_threads, progress, findings)
    num_people = _check_people(dataset, sizes_hw, findings)
    report = DatasetReport(len(sizes_hw), num_people, {kind: findings[kind] for kind in DEFECTS if kind in findings})
    if report.refused:
        raise DataError(f"the dataset cannot be used as it is: {report}")
    if report.repaired:
        logger.warning("the dataset has been repaired: %s", report)
    return report


def _check_images(
    dataset: PoseDataset, decode: bool, num_threads: int | None, progress: bool, findings: Findings
) -> list[tuple[int, int] | None]:
    """Opens all images, adds to the findings, and returns the sizes of those that can be opened."""
    count = len(dataset.image_ids)

    def look(index: int):
        try:
            with dataset.open_image(index) as image:
                size_hw = load_rgb_image(image).size[::-1] if decode else upright_size_hw(image)
        except FileNotFoundError:
            return "image_missing", None
        except Exception:  # Pillow's decoders raise almost anything for a corrupt file
            return "image_unreadable", None
        expected = dataset.sizes_hw[index]
        return ("image_size" if expected not in (None, size_hw) else None), size_hw

    with ThreadPoolExecutor(num_threads or 2 * (os.cpu_count() or 1)) as pool:
        looked = tqdm(pool.map(look, range(count)), "checking images", count, unit="image", disable=not progress)
        results = list(looked)
    for index, (kind, size_hw) in enumerate(results):
        if kind is not None:
            found = f": {size_hw} instead of {dataset.sizes_hw[index]}" if kind == "image_size" else ""
            findings.setdefault(kind, []).append(dataset.image_name(index) + found)
    return [size_hw for _, size_hw in results]


def _check_people(dataset: PoseDataset, sizes_hw: list[tuple[int, int] | None], findings: Findings) -> int:
    """Adds what does not fit into images of known sizes to the findings; returns how many people remain."""
    people = dataset.people
    # In an image of unknown size everything fits.
    sizes = torch.tensor([size_hw or (1 << 20, 1 << 20) for size_hw in sizes_hw]).reshape(-1, 2)
    _, remains, masks = fit_to_image(people.people, sizes[people.people.image_index])
    for kind, mask in masks.items():
        if mask.any():
            findings[kind] = [people.names[index] for index in mask.nonzero()[:, 0].tolist()]
    return int(remains.sum())
