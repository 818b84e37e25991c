import math

import pytest
import torch

import reference
from transformers_detrpose.configuration_detrpose import DETRPoseConfig
from transformers_detrpose.denoising import (
    clamped_logit,
    denoising_attention_mask,
    make_denoising_queries,
    positive_matches,
)
from transformers_detrpose.keypoint_schemas import COCO_PERSON, KeypointSchema, unite_schemas
from transformers_detrpose.pose_targets import pad_targets

SQUARE = (640, 640)


@pytest.fixture(scope="module")
def config():
    return DETRPoseConfig.from_variant("s", skeleton="coco")


def make_labels(counts, num_keypoints=17, labelled=0.7, seed=0):
    """People in the middle of the image, small enough for their noise to stay inside."""
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for count in counts:
        keypoints = 0.3 + 0.4 * torch.rand(count, num_keypoints, 3, generator=generator)
        visible = torch.rand(count, num_keypoints, generator=generator) < labelled
        visible[:, :1] = True
        keypoints[..., 2] = visible * 2.0
        keypoints[..., :2] *= visible[..., None]
        area = 0.01 + 0.01 * torch.rand(count, generator=generator)
        class_labels = torch.ones(count, dtype=torch.int64)
        labels.append({"class_labels": class_labels, "keypoints": keypoints, "area": area})
    return labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def split(queries, values):
    """Splits the slots of (B, P, ...) values into groups, positives and negatives, and people: (B, G, 2, m, ...)."""
    return values.unflatten(1, (queries.num_groups, 2, queries.num_slots))


def displacements(labels, queries):
    """Returns the displacements (B, G, 2, m, K, 2) of all keypoints and the mask (B, m, K) of labeled ones."""
    targets = pad_targets(labels)
    moved = split(queries, queries.reference_points)[..., 1:, :]
    return moved - targets.keypoints[:, None, None], targets.visibility.bool()


def similarities(labels, queries):
    """Returns the KS of each labeled keypoint by itself: positives, negatives."""
    offset, labelled = displacements(labels, queries)
    kappa = 2 * torch.tensor(COCO_PERSON.sigmas)
    area = pad_targets(labels).area[:, None, None, :, None]
    similarity = torch.exp(-offset.square().sum(-1) / (2 * area * kappa**2))
    mask = labelled[:, None].expand(-1, queries.num_groups, -1, -1)
    return similarity[:, :, 0][mask], similarity[:, :, 1][mask]


@pytest.mark.parametrize(
    ("counts", "num_groups", "num_slots"),
    [([1, 0], 20, 1), ([3, 1], 6, 3), ([20, 2], 1, 20), ([25, 2], 1, 25)],
)
def test_shapes(config, counts, num_groups, num_slots):
    queries = make_denoising_queries(make_labels(counts), config, SQUARE)
    num_denoising = 2 * num_slots * num_groups
    assert (queries.num_groups, queries.num_slots) == (num_groups, num_slots)
    assert queries.labels.shape == (2, num_denoising) and queries.labels.dtype == torch.int64
    assert queries.reference_points.shape == (2, num_denoising, 18, 2)
    assert queries.reference_points.dtype == torch.float32
    assert queries.attention_mask.shape == (num_denoising + config.num_queries,) * 2
    assert queries.attention_mask.dtype == torch.bool


def test_double_precision_labels_give_float32(config):
    labels = [{key: value.double() for key, value in image.items()} for image in make_labels([2])]
    labels[0]["class_labels"] = labels[0]["class_labels"].long()
    assert make_denoising_queries(labels, config, SQUARE).reference_points.dtype == torch.float32


def test_empty_slots(config):
    labels = make_labels([3, 1, 0])
    queries = make_denoising_queries(labels, config, SQUARE)
    filled = split(queries, queries.labels) >= 0
    expected = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert torch.equal(filled, expected[:, None, None].expand_as(filled))
    points = split(queries, queries.reference_points)
    assert (points[~filled] == 0.5).all()
    assert (points[filled] != 0.5).any(-1).all()


def test_nothing_without_people_or_groups(config):
    assert make_denoising_queries(make_labels([0, 0]), config, SQUARE) is None
    without = DETRPoseConfig.from_variant("s", skeleton="coco", num_denoising=0)
    assert make_denoising_queries(make_labels([2, 1]), without, SQUARE) is None
    assert make_denoising_queries(make_labels([0, 1]), config, SQUARE) is not None


@pytest.mark.parametrize("image_size", [(640,), (0, 640), (640, -1)])
def test_bad_image_size(config, image_size):
    with pytest.raises(ValueError, match="image_size"):
        make_denoising_queries(make_labels([1]), config, image_size)


def test_similarity_is_the_one_asked_for(config):
    labels = make_labels([10] * 40)
    positive, negative = similarities(labels, make_denoising_queries(labels, config, SQUARE, generator()))
    assert len(positive) > 8000
    assert 0.5 - 1e-3 < positive.min() < 0.51 and 0.99 < positive.max() <= 1
    assert 0.1 - 1e-3 < negative.min() < 0.11 and 0.49 < negative.max() < 0.5 + 1e-3
    # Uniform in KS: every tenth of the range contains a tenth of the samples.
    for similarity, low, high in ((positive, 0.5, 1.0), (negative, 0.1, 0.5)):
        shares = torch.histc(similarity, 10, low, high) / len(similarity)
        assert (shares - 0.1).abs().max() < 0.015


def test_similarity_ranges_are_configurable():
    config = DETRPoseConfig(denoising_positive_similarity=[0.9, 0.9], denoising_negative_similarity=[0.2, 0.3])
    labels = make_labels([5] * 4)
    positive, negative = similarities(labels, make_denoising_queries(labels, config, SQUARE, generator()))
    assert (positive - 0.9).abs().max() < 1e-3
    assert negative.min() > 0.2 - 1e-3 and negative.max() < 0.3 + 1e-3


def test_scale_of_other_aspect_ratios(config):
    # The area in pixels over the longer side: half as wide gives 1/√2 of the displacement.
    labels = make_labels([4])
    square, _ = displacements(labels, make_denoising_queries(labels, config, SQUARE, generator()))
    for image_size in ((640, 320), (320, 640)):
        narrow, labelled = displacements(labels, make_denoising_queries(labels, config, image_size, generator()))
        mask = labelled[:, None, None].expand(square.shape[:-1])
        assert torch.allclose(narrow[mask], square[mask] / math.sqrt(2), atol=1e-6)


def test_directions_are_uniform_over_the_circle(config):
    labels = make_labels([10] * 40)
    queries = make_denoising_queries(labels, config, SQUARE, generator())
    offset, labelled = displacements(labels, queries)
    offset = offset[labelled[:, None, None].expand(offset.shape[:-1])]
    direction = offset / offset.norm(dim=-1, keepdim=True)
    assert len(direction) > 16000
    assert direction.mean(0).norm() < 0.02  # mean resultant length: 0 for uniform directions
    angle = torch.atan2(direction[:, 1], direction[:, 0])
    shares = torch.histc(angle, 16, -math.pi, math.pi) / len(angle)
    assert (shares - 1 / 16).abs().max() < 0.01


def test_directions_are_configurable():
    config = DETRPoseConfig(denoising_max_angle=90)
    labels = make_labels([10] * 4)
    offset, labelled = displacements(labels, make_denoising_queries(labels, config, SQUARE, generator()))
    offset = offset[labelled[:, None, None].expand(offset.shape[:-1])]
    assert (offset > -1e-6).all() and (offset.amax(0) > 0.01).all()  # right and down


def test_keypoints_move_apart_from_each_other(config):
    labels = make_labels([1], labelled=1.0)
    offset, _ = displacements(labels, make_denoising_queries(labels, config, SQUARE, generator()))
    angle = torch.atan2(offset[..., 1], offset[..., 0])
    # Neither keypoints, nor slots, nor groups share a direction.
    assert len(angle.mul(1e4).round().unique()) > 0.95 * angle.numel()


def test_unlabelled_keypoints_stay_at_zero(config):
    labels = make_labels([4, 2])
    labels[0]["keypoints"][1, 3] = torch.tensor([0.6, 0.4, 0.0])  # coordinates without a label do not count
    queries = make_denoising_queries(labels, config, SQUARE)
    points = split(queries, queries.reference_points)[..., 1:, :]
    targets = pad_targets(labels)
    unlabelled = (targets.is_person[..., None] & ~targets.visibility.bool())[:, None, None].expand(points.shape[:-1])
    assert unlabelled.any()
    assert torch.allclose(points[unlabelled], torch.tensor(0.001 / 1.001), atol=1e-7)


def test_instance_point_is_the_mean_of_the_labelled_keypoints(config):
    labels = make_labels([4, 2])
    queries = make_denoising_queries(labels, config, SQUARE)
    centres = split(queries, queries.reference_points)[..., 0, :]
    for image, label in enumerate(labels):
        for person, keypoints in enumerate(label["keypoints"]):
            mean = keypoints[keypoints[:, 2] > 0, :2].mean(0)
            assert torch.allclose(centres[image, :, :, person], mean, atol=1e-6)


def test_points_stay_inside_the_image(config):
    labels = make_labels([2, 2])
    for image in labels:
        image["keypoints"][:, 0, :2] = torch.tensor([0.0, 1.0])
        image["area"][:] = 0.9
    points = make_denoising_queries(labels, config, SQUARE).reference_points
    assert points.min().item() == pytest.approx(0.001 / 1.001, rel=1e-4)
    assert points.max().item() == pytest.approx(1 - 0.001 / 1.001, rel=1e-4)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.5, 0.0), (0.25, math.log(1 / 3)), (0.0, math.log(1e-3)), (-3.0, math.log(1e-3)), (2.0, -math.log(1e-3))],
)
def test_clamped_logit(fraction, expected):
    assert clamped_logit(torch.tensor(fraction)).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_label_noise(config):
    labels = make_labels([10] * 40)
    queries = make_denoising_queries(labels, config, SQUARE, generator())
    replaced = queries.labels != 1
    # A quarter is redrawn, of which one in 80 gets its old label.
    assert replaced.float().mean().item() == pytest.approx(0.25 * 79 / 80, abs=0.02)
    assert queries.labels[replaced].min() == 0 and queries.labels.max() == 79
    exact = DETRPoseConfig(label_noise_ratio=0.0)
    assert (make_denoising_queries(labels, exact, SQUARE).labels == 1).all()


def test_random_numbers_come_from_the_generator(config):
    labels = make_labels([3, 1])
    torch.manual_seed(0)
    first = make_denoising_queries(labels, config, SQUARE, generator(7))
    second = make_denoising_queries(labels, config, SQUARE, generator(7))
    other = make_denoising_queries(labels, config, SQUARE, generator(8))
    assert torch.equal(first.reference_points, second.reference_points)
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.reference_points, other.reference_points)


def test_labels_are_not_edited(config):
    labels = make_labels([3, 1])
    before = [{key: value.clone() for key, value in image.items()} for image in labels]
    make_denoising_queries(labels, config, SQUARE)
    assert all(torch.equal(old[key], new[key]) for old, new in zip(before, labels, strict=True) for key in old)


def test_one_keypoint():
    config = DETRPoseConfig(keypoint_schema=KeypointSchema(names=("tip",)))
    queries = make_denoising_queries(make_labels([2, 1], num_keypoints=1), config, SQUARE)
    assert queries.reference_points.shape == (2, 40, 2, 2)
    assert queries.reference_points.isfinite().all()


def test_attention_mask_by_hand():
    # Two groups of one positive and one negative, then one matching query. x: may not attend.
    expected = ["..xx.", "..xx.", "xx...", "xx...", "xxxx."]
    mask = denoising_attention_mask(num_slots=1, num_groups=2, num_queries=1)
    assert ["".join("x" if masked else "." for masked in row) for row in mask] == expected


@pytest.mark.parametrize("case", (*reference.CASES, *reference.ECPOSE_CASES))
def test_slots_match_the_reference(case, device):
    case = reference.load_case(case)
    config = DETRPoseConfig.from_variant(case.variant, skeleton=case.dataset)
    queries = make_denoising_queries(case.labels(device), config, (256, 320))
    expected = case.denoising_queries(device)
    assert queries.num_groups == expected.num_groups
    assert torch.equal(queries.attention_mask, expected.attention_mask)
    reference_points = expected.reference_points
    filled = expected.labels >= 0
    assert torch.equal(queries.labels >= 0, filled)
    # Unlabeled keypoints and empty slots have no noise, so that they are the same.
    still = (reference_points - reference_points.clamp(max=0.0011)).abs().sum(-1) == 0
    still |= ~filled.unsqueeze(-1)
    assert still.any()
    assert torch.allclose(queries.reference_points[still], reference_points[still], atol=1e-6)


def test_positive_matches():
    targets = pad_targets(make_labels([2, 1, 0]))
    assert positive_matches(targets, num_groups=2).tolist() == [
        [0, 1, -1, -1, 0, 1, -1, -1],
        [0, -1, -1, -1, 0, -1, -1, -1],
        [-1] * 8,
    ]


def test_noise_has_the_sigmas_of_each_class():
    first = KeypointSchema(names=("a", "b"), sigmas=(0.02, 0.04))
    second = KeypointSchema(names=("b", "c"), sigmas=(0.08, 0.06))
    schema = unite_schemas({0: first, 1: second}, {0: "first", 1: "second"})
    fields = {"id2label": {0: "first", 1: "second"}, "num_denoising": 400, "label_noise_ratio": 0.0}
    config = DETRPoseConfig.from_variant("s", skeleton=schema, denoising_positive_similarity=(0.5, 0.5), **fields)
    keypoints = torch.tensor([[[0.5, 0.5, 2], [0.5, 0.5, 2], [0, 0, 0]], [[0, 0, 0], [0.5, 0.5, 2], [0.5, 0.5, 2]]])
    labels = [{"class_labels": torch.tensor([0, 1]), "keypoints": keypoints, "area": torch.tensor([0.01, 0.04])}]
    queries = make_denoising_queries(labels, config, SQUARE, generator())
    offset, labelled = displacements(labels, queries)
    distances = offset[0, :, 0].norm(dim=-1)  # (groups, people, keypoints)
    # KS = 0.5 is 2 sigma s sqrt(2 ln 2) away.
    sigmas = torch.tensor([[0.02, 0.04, 0], [0, 0.08, 0.06]])
    expected = 2 * sigmas * torch.tensor([0.1, 0.2])[:, None] * math.sqrt(2 * math.log(2))
    own = labelled[0].expand_as(distances)
    torch.testing.assert_close(distances[own], expected.expand_as(distances)[own], atol=1e-5, rtol=1e-3)
    # Keypoints that a class lacks are where unlabeled ones are.
    assert distances[~own].max() < 2e-3
