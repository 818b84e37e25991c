"""Augmentation: where keypoints, boxes and areas go, in which epoch, and that the same seed gives the same samples."""

import pytest
import three_kinds
import torch
from torchvision import tv_tensors

from drawn_people import find_square
from transformers_detrpose import DETRPoseImageProcessor
from transformers_detrpose.data import (
    Augmentation,
    CocoPoseDataset,
    EvaluationSamples,
    Phase,
    SampleKey,
    TrainingSamples,
    paper_phases,
    phase_at,
    read_annotations,
    to_labels,
)
from transformers_detrpose.data.augmentation import FULL, NO_AUGMENTATION, augment, flip, mosaic, resize, zoom_out
from transformers_detrpose.images import resize_with_pillow
from transformers_detrpose.labels import people_in_image

SWAP = (1, 0, 2)


@pytest.fixture(scope="module")
def dataset(people_folder):
    return CocoPoseDataset(*people_folder.arguments)


def assert_squares_at_keypoints(sample, scale_xy, tolerance=0.1, colors=(0, 1, 2), people=None):
    """The square of each keypoint is found where the middle of its pixel, `scale_xy` pixels wide by now, should be."""
    image = sample["image"].as_subclass(torch.Tensor)
    scale_xy = torch.tensor(scale_xy)
    for person in range(len(sample["keypoints"])) if people is None else people:
        for color, keypoint in zip(colors, sample["keypoints"][person].as_subclass(torch.Tensor), strict=True):
            middle = keypoint + scale_xy / 2
            radius = int(8 * scale_xy.max()) + 2
            error = (find_square(image, color, middle.tolist(), radius) - middle).abs().max()
            assert error < tolerance, f"keypoint {keypoint.tolist()} is off by {error:.3f} pixels"


def same(first, second):
    """Whether two samples are equal in everything."""
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first
    )


def test_squares_are_at_the_keypoints_of_the_dataset(dataset):
    for index in range(7):
        assert_squares_at_keypoints(dataset[index], (1.0, 1.0), tolerance=1e-6)


@pytest.mark.parametrize("size_hw", [(64, 64), (96, 224), (320, 160)])
def test_resizing_scales_keypoints_boxes_and_area(dataset, size_hw):
    for index in range(7):
        sample = dataset[index]
        height, width = sample["orig_size"]
        scale_xy = (size_hw[1] / width, size_hw[0] / height)
        resized = resize(sample, size_hw)
        assert_squares_at_keypoints(resized, scale_xy)
        torch.testing.assert_close(resized["area"], sample["area"] * scale_xy[0] * scale_xy[1])
        torch.testing.assert_close(resized["boxes"].tolist(), (sample["boxes"] * torch.tensor(2 * scale_xy)).tolist())
        assert resized["keypoints"].canvas_size == resized["boxes"].canvas_size == size_hw


def test_flipping_moves_column_x_to_width_less_1_less_x_and_swaps_sides(dataset):
    for index in range(7):
        sample = dataset[index]
        width = sample["image"].shape[-1]
        flipped = flip(sample, SWAP)
        # The red square, around the left hand before, is the right hand's now: keypoint 1.
        assert_squares_at_keypoints(flipped, (1.0, 1.0), tolerance=1e-6, colors=SWAP)
        assert flipped["keypoints"][0, 1, 0] == width - 1 - sample["keypoints"][0, 0, 0]
        assert flipped["keypoints"][0, 2, 0] == width - 1 - sample["keypoints"][0, 2, 0]
        assert flipped["visibility"].tolist() == sample["visibility"][:, SWAP].tolist() == [[1, 2, 2]]
        x1, y1, x2, y2 = sample["boxes"][0].tolist()
        assert flipped["boxes"].tolist() == [[width - x2, y1, width - x1, y2]]
        assert same(flip(flipped, SWAP), sample)


@pytest.mark.parametrize("ratio", [1.0, 1.3, 2.5])
def test_zooming_out_adds_a_black_border_of_the_given_share(dataset, ratio):
    size_hw = (240, 320)
    for index in range(7):
        sample = dataset[index]
        zoomed = zoom_out({**sample, "image": sample["image"] | 32}, ratio, size_hw)
        inner_h, inner_w = (round(length / (2 * ratio - 1)) for length in size_hw)
        is_inside = zoomed["image"].as_subclass(torch.Tensor).amin(0) > 0
        rows, columns = is_inside.any(1).nonzero()[:, 0], is_inside.any(0).nonzero()[:, 0]
        assert (len(rows), len(columns), is_inside.sum()) == (inner_h, inner_w, inner_h * inner_w)
        assert abs(rows[0] - (size_hw[0] - 1 - rows[-1])) <= 1 and abs(columns[0] - (size_hw[1] - 1 - columns[-1])) <= 1

        height, width = sample["orig_size"]
        scale_xy = (inner_w / width, inner_h / height)
        assert_squares_at_keypoints(zoom_out(sample, ratio, size_hw), scale_xy)
        torch.testing.assert_close(zoomed["area"], sample["area"] * scale_xy[0] * scale_xy[1])
        assert zoomed["keypoints"].canvas_size == size_hw


def test_a_mosaic_has_four_images_in_the_corners_of_its_cells(dataset):
    samples = [dataset[index] for index in (0, 3, 7, 5)]  # 7 is without people
    side = 100
    merged = mosaic(samples, side)
    sizes = [sample["orig_size"] for sample in samples]
    tiles = [(side * h // min(h, w), side * w // min(h, w)) for h, w in sizes]
    cell_h, cell_w = max(h for h, _ in tiles), max(w for _, w in tiles)
    assert merged["image"].shape == (3, 2 * cell_h, 2 * cell_w)
    assert merged["keypoints"].canvas_size == merged["boxes"].canvas_size == (2 * cell_h, 2 * cell_w)
    assert merged["visibility"].shape == (3, 3) and merged["class_labels"].tolist() == [1, 1, 1]
    assert merged["image_id"] == samples[0]["image_id"]
    assert merged["image"].sum() == sum(resize(s, t)["image"].sum() for s, t in zip(samples, tiles, strict=True))

    corners = ((0, 0), (cell_w, 0), (0, cell_h), (cell_w, cell_h))
    for person, image in enumerate((0, 1, 3)):
        (height, width), (tile_h, tile_w) = sizes[image], tiles[image]
        scale_xy = torch.tensor([tile_w / width, tile_h / height])
        assert_squares_at_keypoints(merged, scale_xy.tolist(), people=[person])
        shifted = samples[image]["keypoints"][0].as_subclass(torch.Tensor) * scale_xy + torch.tensor(corners[image])
        torch.testing.assert_close(merged["keypoints"][person].as_subclass(torch.Tensor), shifted)
        torch.testing.assert_close(merged["area"][person], samples[image]["area"][0] * scale_xy.prod())


def test_area_stays_the_same_fraction_of_what_is_drawn(dataset):
    """A person whose area is that of the three squares still has the area of the three squares at the end."""
    for index in range(7):
        sample = {**dataset[index], "area": torch.tensor([3.0 * 11 * 11])}
        for made in (zoom_out(sample, 1.7, (256, 320)), mosaic([sample] + 3 * [dataset[7]], 200)):
            drawn = made["image"].double().sum() / 255
            assert made["area"].item() == pytest.approx(drawn.item(), rel=0.02)


def test_all_of_it_together_keeps_the_squares_at_the_keypoints(dataset):
    augmentation = Augmentation(mosaic_side=200, zoom_out_range=(1.0, 1.5), jitter=0)
    samples = TrainingSamples(dataset, 400, (Phase(0, augmentation, False),))
    num_people = 0
    for epoch in range(4):
        samples.set_epoch(epoch)
        for index in range(len(samples)):
            sample = samples[index]
            assert sample["image"].shape == (3, 400, 400)
            for keypoints, visibility in zip(sample["keypoints"], sample["visibility"].tolist(), strict=True):
                # The second keypoint of all is hidden, and becomes the first by mirroring.
                colors = SWAP if visibility == [1, 2, 2] else (0, 1, 2)
                found = [find_square(sample["image"], c, k.tolist(), 8) for c, k in zip(colors, keypoints, strict=True)]
                # A pixel has become up to six pixels wide, and its middle is three away.
                assert (torch.stack(found) - keypoints).abs().max() < 3.5
                num_people += 1
    assert num_people > 40


def test_changing_colours_leaves_the_labels_alone(dataset):
    sample = {**dataset[0], "image": dataset[0]["image"] // 3 + 60}
    only_jitter = Augmentation(mosaic=0, zoom_out=0, flip=0, jitter=1)
    torch.manual_seed(0)
    jittered = augment([sample], 0, only_jitter, sample["orig_size"], SWAP)
    assert jittered["image"].dtype == torch.uint8 and not torch.equal(jittered["image"], sample["image"])
    assert same({**jittered, "image": sample["image"]}, sample)


def test_nothing_is_left_out_or_moved_without_augmentation(dataset):
    samples = TrainingSamples(dataset, (96, 128))
    assert all(same(samples[index], resize(dataset[index], (96, 128))) for index in range(len(dataset)))


def test_evaluation_has_the_pixels_of_pillow(dataset):
    processor = DETRPoseImageProcessor(size={"height": 64, "width": 64}, do_rescale=False)
    sample = EvaluationSamples(dataset, processor)[0]
    expected = resize_with_pillow(dataset[0]["image"].as_subclass(torch.Tensor), (64, 64))
    assert torch.equal(sample["image"].as_subclass(torch.Tensor), expected)
    assert torch.equal(sample["keypoints"], resize(dataset[0], (64, 64))["keypoints"])


def test_a_sample_depends_on_seed_epoch_and_index_only(dataset):
    phases = (Phase(0, FULL, True),)
    samples = TrainingSamples(dataset, 96, phases, seed=3)
    samples.set_epoch(2)
    expected = [samples[index] for index in range(len(samples))]

    again = TrainingSamples(dataset, 96, phases, seed=3)
    torch.manual_seed(9)
    for index in reversed(range(len(samples))):
        assert same(again[SampleKey(index, 2, (96, 96))], expected[index])

    def count_different(epoch, seed):
        others = TrainingSamples(dataset, 96, phases, seed)
        return sum(not same(others[SampleKey(index, epoch, (96, 96))], expected[index]) for index in range(8))

    # A sample in sixteen is not changed at all, and the last image is black.
    assert count_different(2, seed=3) == 0
    assert count_different(3, seed=3) >= 6 and count_different(2, seed=4) >= 6


def test_other_random_numbers_are_not_disturbed(dataset):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert TrainingSamples(dataset, 96, (Phase(0, FULL, True),))[0]
    assert torch.equal(torch.rand(3), expected)


def test_changes_happen_as_often_as_asked():
    """Seen from what becomes of a white image whose only keypoint, on its left side, is in its top left corner."""
    box = tv_tensors.BoundingBoxes([[0.0, 0.0, 32.0, 32.0]], format="XYXY", canvas_size=(32, 32))
    sample = {"image": tv_tensors.Image(torch.full((3, 32, 32), 255, dtype=torch.uint8)), "boxes": box}
    sample |= {"keypoints": tv_tensors.KeyPoints([[[0.0, 0.0], [0.0, 0.0]]], canvas_size=(32, 32))}
    sample |= {"visibility": torch.tensor([[2, 0]]), "class_labels": torch.ones(1), "area": torch.ones(1)}
    augmentation = Augmentation(mosaic=0.4, mosaic_side=32, zoom_out=0.3, zoom_out_range=(2, 2), flip=0.7, jitter=0)
    samples = TrainingSamples([sample], 32, (Phase(0, augmentation, False),), flip_permutation=(1, 0))
    num = 2000
    counts = dict.fromkeys(("mosaic", "zoom_out", "flip"), 0)
    for epoch in range(num):
        samples.set_epoch(epoch)
        changed = samples[0]
        counts["mosaic"] += len(changed["area"]) == 4
        counts["zoom_out"] += bool((changed["image"][:, 0, 0] == 0).all())
        counts["flip"] += changed["visibility"][0].tolist() == [0, 2]
    expected = {"mosaic": 0.4, "zoom_out": 0.6 * 0.3, "flip": 0.7}
    assert all(abs(counts[key] / num - expected[key]) < 0.04 for key in expected), counts


def test_phases_of_the_paper():
    """52 epochs: 5 of warmup, mosaic until half-way, the last 4 without augmentation."""
    phases = paper_phases(52)

    def at(epoch):
        augmentation, multi_scale = phase_at(phases, epoch)[1:]
        return augmentation.mosaic, augmentation.zoom_out, augmentation.flip, augmentation.jitter, multi_scale

    for epochs, expected in {
        (0, 4): (0, 0, 0.5, 0.5, True),
        (5, 25): (0.5, 0.5, 0.5, 0.5, True),
        (26, 47): (0, 0.5, 0.5, 0.5, True),
        (48, 51, 60): (0, 0, 0, 0, False),
    }.items():
        assert [at(epoch) for epoch in epochs] == [expected] * len(epochs)


@pytest.mark.parametrize(
    ("num_epochs", "starts"),
    [(160, (0, 5, 80, 156)), (64, (0, 5, 32, 60)), (20, (0, 2, 10, 18)), (3, (0, 0, 1, 3)), (1, (0, 0, 0, 1))],
)
def test_short_trainings_have_short_first_and_last_phases(num_epochs, starts):
    assert tuple(phase.first_epoch for phase in paper_phases(num_epochs)) == starts


def test_phases_can_be_chosen():
    def starts(*args, **kwargs):
        return [phase.first_epoch for phase in paper_phases(*args, **kwargs)]

    assert starts(10, warmup_epochs=8, final_start=9) == [0, 8, 8, 9]
    assert starts(160, 5, 83, 156) == [0, 5, 83, 156]
    assert starts(52, 5, 29, final_start=60) == [0, 5, 29, 60]  # a last phase that is never reached
    assert phase_at(paper_phases(10, warmup_epochs=0, final_start=0), 0).augmentation == NO_AUGMENTATION
    with pytest.raises(ValueError, match="begins in epoch 3, mosaic ends in epoch 2"):
        paper_phases(4, warmup_epochs=3, mosaic_end=2, final_start=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mosaic": 1.5}, "`mosaic` must be a probability from 0 to 1, but got 1.5"),
        ({"zoom_out_range": (0.5, 2)}, "`zoom_out_range` must be two rising numbers from 1"),
        ({"jitter_strength": 0.6}, "`jitter_strength` must be from 0 to 0.5, but got 0.6"),
        ({"mosaic_side": 0}, "`mosaic_side` must be at least 1"),
    ],
)
def test_impossible_augmentation_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


def test_impossible_samples_are_refused(dataset):
    with pytest.raises(ValueError, match="must begin with epoch 0"):
        TrainingSamples(dataset, phases=(Phase(1, FULL, True),))
    with pytest.raises(ValueError, match="`seed` must be at least 0, but got -1"):
        TrainingSamples(dataset, seed=-1)
    with pytest.raises(ValueError, match="a size must be .* but got"):
        TrainingSamples(dataset, (0, 5))


def test_a_keypoint_on_the_border_stays_in_the_image(folder):
    """x = width - 1 is column 0 when mirrored; x = width, which some files have, would be -1."""
    folder.annotate([[64, 20, 2], [63, 48, 2], [0, 0, 2]], folder.add_image((64, 48)))
    dataset = CocoPoseDataset(*folder.arguments)
    labels = to_labels(flip(dataset[0], SWAP))
    expected = torch.tensor([[[0, 1, 2], [0, 20 / 48, 2], [63 / 64, 0, 2]]])
    torch.testing.assert_close(labels["keypoints"], expected)


@pytest.mark.parametrize("share_keypoints", [True, False])
def test_flipping_classes_with_different_keypoints(share_keypoints):
    """Each class is flipped as in a dataset of its own."""
    content = three_kinds_content()
    annotations = read_annotations(content, share_keypoints=share_keypoints)
    united = flip(labelled_sample(annotations, (100, 200)), annotations.schema.flip_permutation)
    for row, (label, schema) in enumerate(three_kinds.SCHEMAS.items()):
        single = {**content, "annotations": [content["annotations"][row]]}
        single["categories"] = [category for category in content["categories"] if category["id"] == label]
        alone = flip(labelled_sample(read_annotations(single), (100, 200)), schema.flip_permutation)
        own = list(annotations.schema.of_class(label).indices)
        assert torch.equal(united["visibility"][row, own], alone["visibility"][0])
        is_labelled = alone["visibility"][0] > 0
        assert torch.equal(united["keypoints"][row, own][is_labelled], alone["keypoints"][0][is_labelled])
        assert united["visibility"][row].count_nonzero() == alone["visibility"].count_nonzero() > 0


def three_kinds_content():
    """One person, one dog and one ball with random keypoints, some of which are not labelled."""
    generator = torch.Generator().manual_seed(0)
    annotations = []
    for number, (label, schema) in enumerate(three_kinds.SCHEMAS.items(), start=1):
        points = torch.rand(schema.num_keypoints, 3, generator=generator) * torch.tensor([199.0, 99.0, 0])
        points[:, 2] = torch.randint(3, (schema.num_keypoints,), generator=generator)
        points[0, 2] = 2
        fields = {"bbox": [1, 1, 50, 50], "keypoints": points.flatten().tolist()}
        annotations.append({"id": number, "image_id": 1, "category_id": label, **fields})
    return {"images": [{"id": 1}], "annotations": annotations, "categories": three_kinds.CATEGORIES}


def labelled_sample(annotations, size_hw):
    image = tv_tensors.Image(torch.zeros(3, *size_hw, dtype=torch.uint8))
    return {"image": image, **people_in_image(annotations.instances.completed(), size_hw)}
