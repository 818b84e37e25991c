"""MixUp and CopyPaste: which pixels, keypoints, boxes and areas they make, and how often they happen."""

import pytest
import torch
from torchvision import tv_tensors

from transformers_detrpose.data import (
    Augmentation,
    CocoPoseDataset,
    Phase,
    SampleKey,
    TrainingSamples,
    to_labels,
    train_dataloader,
)
from transformers_detrpose.data.augmentation import augment, cut_out, mix_up, paste


def sample_of(size_hw, gray, *people):
    """A sample of one gray value; `people` are keypoints [x, y, visibility], box and area each."""
    keypoints = torch.tensor([person[0] for person in people], dtype=torch.float32).reshape(len(people), -1, 3)
    boxes = torch.tensor([person[1] for person in people], dtype=torch.float32).reshape(-1, 4)
    return {
        "image": tv_tensors.Image(torch.full((3, *size_hw), gray, dtype=torch.uint8)),
        "keypoints": tv_tensors.KeyPoints(keypoints[..., :2], canvas_size=size_hw),
        "visibility": keypoints[..., 2].long(),
        "class_labels": torch.arange(1, len(people) + 1),
        "area": torch.tensor([float(person[2]) for person in people]),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size_hw),
        "image_id": gray,
        "orig_size": size_hw,
    }


@pytest.fixture
def dataset(people_folder):
    return CocoPoseDataset(*people_folder.arguments)


def test_mix_up_scales_the_second_sample_to_the_first_and_keeps_both_people():
    first = sample_of((40, 80), 100, ([[10, 20, 2], [70, 30, 1]], [5, 10, 75, 35], 600))
    second = sample_of((20, 20), 200, ([[4, 6, 2], [0, 0, 0]], [2, 4, 10, 16], 50))
    mixed = mix_up(first, second, 0.45)
    # 0.45 * 100 + 0.55 * 200
    assert mixed["image"].dtype == torch.uint8 and mixed["image"].shape == (3, 40, 80)
    assert (mixed["image"] == 155).all()
    # The second is stretched four times in x, twice in y: its area eight times.
    assert mixed["keypoints"].tolist() == [[[10, 20], [70, 30]], [[16, 12], [0, 0]]]
    assert mixed["boxes"].tolist() == [[5, 10, 75, 35], [8, 8, 40, 32]]
    assert mixed["area"].tolist() == [600, 400]
    assert mixed["visibility"].tolist() == [[2, 1], [2, 0]] and mixed["class_labels"].tolist() == [1, 1]
    assert mixed["keypoints"].canvas_size == mixed["boxes"].canvas_size == (40, 80)
    assert (mixed["image_id"], mixed["orig_size"]) == (100, (40, 80))
    assert first["area"].tolist() == [600] and (first["image"] == 100).all()


def test_mix_up_with_a_picture_without_people():
    first = sample_of((8, 8), 0, ([[1, 2, 2]], [0, 0, 8, 8], 30))
    nobody = {**first, "image": first["image"] + 90}
    nobody |= {key: first[key][:0] for key in ("visibility", "class_labels", "area")}
    nobody["keypoints"] = tv_tensors.KeyPoints(torch.zeros(0, 1, 2), canvas_size=(8, 8))
    nobody["boxes"] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(8, 8))
    assert mix_up(first, nobody, 0.5)["keypoints"].tolist() == [[[1, 2]]]
    assert mix_up(nobody, first, 0.5)["area"].tolist() == [30]


# The first keypoint is on the border of the box, the second outside it, the third not labeled.
DONOR = sample_of(
    (30, 40),
    0,
    ([[1, 1, 2], [2, 2, 2], [3, 3, 2]], [0, 0, 9, 9], 70),
    ([[24.5, 12, 2], [23, 9, 2], [0, 0, 0]], [20.5, 10.25, 24.5, 18], 25),
)


def test_a_person_is_cut_out_with_all_pixels_that_their_box_touches():
    DONOR["image"][:, 10:18, 20:25] = 7
    patch = cut_out(DONOR, 1)
    assert patch["image"].shape == (3, 8, 5) and (patch["image"] == 7).all()
    assert patch["boxes"].tolist() == [[0.5, 0.25, 4.5, 8]]
    assert patch["keypoints"][0, 0].tolist() == [4.5, 2]
    assert patch["visibility"].tolist() == [[2, 0, 0]] and patch["class_labels"].tolist() == [2]
    assert patch["area"].tolist() == [4 * 7.75]  # that of the box, not 25
    assert DONOR["visibility"].tolist() == [[2, 2, 2], [2, 2, 0]]


def test_a_pasted_person_is_a_target_where_they_are_seen():
    target = sample_of((60, 50), 100, ([[22, 33, 1], [5, 6, 2], [7, 8, 2]], [4, 5, 30, 40], 333))
    patch = cut_out({**DONOR, "image": DONOR["image"] * 0 + 200}, 1)
    pasted = paste(target, patch, (30, 20), 0.55)
    # 0.55 * 200 + 0.45 * 100 in rows 30 to 37, columns 20 to 24
    changed = torch.full((3, 60, 50), 100)
    changed[:, 30:38, 20:25] = 155
    assert torch.equal(pasted["image"].as_subclass(torch.Tensor).long(), changed)
    assert pasted["boxes"].tolist() == [[4, 5, 30, 40], [20.5, 30.25, 24.5, 38]]
    assert pasted["area"].tolist() == [333, 31]
    assert pasted["class_labels"].tolist() == [1, 2]
    assert pasted["keypoints"].canvas_size == pasted["boxes"].canvas_size == (60, 50)
    # The person underneath keeps a keypoint that is covered.
    assert pasted["visibility"].tolist() == [[1, 2, 2], [2, 0, 0]]
    assert pasted["keypoints"][0].tolist() == [[22, 33], [5, 6], [7, 8]]
    size_wh = torch.tensor([50, 60, 1])
    labels = to_labels(pasted)["keypoints"][1] * size_wh
    torch.testing.assert_close(labels, torch.tensor([[24.5, 32, 2], [0, 0, 0], [0, 0, 0]]))
    assert (target["image"] == 100).all()


def test_blending_happens_as_often_as_asked_within_its_range():
    """Two white images with one person each in black ones tell from their pixels and people what became of them."""
    first = sample_of((16, 16), 0, ([[1, 1, 2]], [0, 0, 4, 4], 10))
    second = sample_of((16, 16), 200, ([[9, 9, 2]], [8, 8, 12, 12], 10))
    augmentation = Augmentation(mosaic=0, mixup=0.3, copy_paste=0.5, zoom_out=0, flip=0, jitter=0)
    counts = {"mixup": 0, "copy_paste": 0, "unchanged": 0}
    shares = []
    torch.manual_seed(0)
    num = 600
    for _ in range(num):
        sample = augment([first, second], 0, augmentation, (16, 16), (0,))
        grays = sample["image"].unique().tolist()
        num_people = len(sample["area"])
        kind = {1: "unchanged", 2: "mixup", 4: "copy_paste"}[num_people]
        counts[kind] += 1
        if kind == "mixup":
            assert len(grays) == 1
            shares += [1 - grays[0] / 200] * (grays[0] > 0)
    expected = {"mixup": 0.3, "copy_paste": 0.5, "unchanged": 0.2}
    assert all(abs(counts[kind] / num - expected[kind]) < 0.08 for kind in expected), counts
    # Half of the images blended with are black; gray values are rounded.
    assert len(shares) > 40 and 0.447 < min(shares) < 0.47 and 0.53 < max(shares) < 0.553


def test_pasted_people_are_anywhere_within_the_image_and_larger_ones_are_left_out():
    donor = sample_of((40, 40), 255, ([[5, 5, 2]], [4, 4, 8, 8], 10), ([[9, 9, 2]], [0, 0, 40, 40], 900))
    target = sample_of((20, 10), 0, ([[1, 1, 2]], [0, 0, 2, 2], 4))
    augmentation = Augmentation(mosaic=0, copy_paste=1, zoom_out=0, flip=0, jitter=0)
    corners = []
    torch.manual_seed(0)
    for _ in range(200):
        sample = augment([target, donor], 0, augmentation, (20, 10), (0,))
        boxes = sample["boxes"][1:]
        assert (boxes >= 0).all() and (boxes <= torch.tensor([10, 20, 10, 20])).all()
        sizes = {tuple(size) for size in (boxes[:, 2:] - boxes[:, :2]).tolist()}
        assert sizes <= {(2, 2), (4, 4)}
        corners += [box[:2].tolist() for box in boxes if box[2] - box[0] == 4]
    xs, ys = map(set, zip(*corners, strict=True))
    assert xs == set(range(7)) and ys == set(range(17))


def test_people_of_an_image_that_would_be_a_mosaic_have_the_size_they_have_there():
    donor = sample_of((40, 80), 255, ([[20, 20, 2]], [16, 16, 32, 32], 10))
    augmentation = Augmentation(mosaic=1, mosaic_side=20, copy_paste=1, zoom_out=0, flip=0, jitter=0)
    torch.manual_seed(0)
    sample = augment([donor], 0, augmentation, (40, 80), (0,))  # the size of the mosaic
    assert sample["area"].tolist() == [2.5] * 4 + [64] * 3  # all halved, but the area of a pasted person is their box's
    sizes = sample["boxes"][:, 2:] - sample["boxes"][:, :2]
    assert sizes.tolist() == [[8, 8]] * 7


def test_people_with_an_empty_box_are_not_pasted():
    sample = sample_of((16, 16), 0, ([[1, 1, 2]], [1, 1, 1, 1], 10))
    augmentation = Augmentation(mosaic=0, copy_paste=1, zoom_out=0, flip=0, jitter=0)
    assert len(augment([sample], 0, augmentation, (16, 16), (0,))["area"]) == 1


def test_samples_depend_neither_on_workers_nor_on_what_came_before(dataset):
    """Otherwise a resumed training would not be the one that was interrupted."""
    phases = (Phase(0, Augmentation(mosaic_side=64, mixup=0.5, copy_paste=0.5), False),)
    samples = TrainingSamples(dataset, 64, phases, seed=1)
    loaders = [train_dataloader(dataset, 4, 64, phases, seed=1, num_workers=num_workers) for num_workers in (0, 2)]
    for alone, helped in zip(*loaders, strict=True):
        assert torch.equal(alone["pixel_values"], helped["pixel_values"])
        for labels, others in zip(alone["labels"], helped["labels"], strict=True):
            assert torch.equal(labels["keypoints"], others["keypoints"])
            assert torch.equal(labels["area"], others["area"])
    key = SampleKey(5, 3, (64, 64))
    expected = samples[key]
    assert samples[SampleKey(2, 0, (64, 64))] and torch.equal(samples[key]["image"], expected["image"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixup": -0.1}, "`mixup` must be a probability from 0 to 1, but got -0.1"),
        ({"mixup": 0.6, "copy_paste": 0.5}, "their sum must be at most 1, but got 0.6 and 0.5"),
        ({"blend_range": (0.6, 0.4)}, "`blend_range` must be two rising numbers from 0 to 1"),
    ],
)
def test_impossible_blending_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)
