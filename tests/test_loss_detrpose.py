import itertools
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from transformers_detrpose import loss_detrpose
from transformers_detrpose.configuration_detrpose import DETRPoseConfig
from transformers_detrpose.denoising import denoising_attention_mask, make_denoising_queries
from transformers_detrpose.keypoint_schemas import KeypointSchema, unite_schemas
from transformers_detrpose.loss_detrpose import (
    OutputSets,
    assign,
    focal_cost,
    focal_loss,
    keypoint_similarity,
    ksvf_loss,
    match_people,
    matching_costs,
    pose_estimation_loss,
    stack_output_sets,
    union_matches,
)
from transformers_detrpose.pose_targets import pad_targets, validate_labels


def make_config(num_keypoints=3, num_classes=2, sigma=0.05, **fields):
    names = tuple(f"keypoint_{index}" for index in range(num_keypoints))
    id2label = {index: f"class_{index}" for index in range(num_classes)}
    schema = KeypointSchema(names=names, sigmas=(sigma,) * num_keypoints)
    return DETRPoseConfig(keypoint_schema=schema, id2label=id2label, **fields)


def make_labels(counts, config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for count in counts:
        keypoints = torch.rand(count, config.num_keypoints, 3, generator=generator)
        keypoints[..., 2] = torch.randint(3, keypoints.shape[:2], generator=generator).float()
        keypoints[:, :1, 2] = 2  # everyone has a labeled keypoint
        class_labels = torch.randint(config.num_labels, (count,), generator=generator)
        area = 0.05 + 0.1 * torch.rand(count, generator=generator)
        labels.append({"class_labels": class_labels, "keypoints": keypoints, "area": area})
    return labels


def make_outputs(batch_size, config, num_queries=6, names=("0", "", "initial", "encoder"), seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, num_queries)
    return {
        name: {
            "logits": torch.randn(*shape, config.num_labels, generator=generator, requires_grad=True),
            "pred_keypoints": torch.rand(*shape, config.num_keypoints, 2, generator=generator, requires_grad=True),
        }
        for name in names
    }


def read_reference(name, device="cpu"):
    """Returns configuration, outputs, labels, denoising queries, their outputs, and the expected losses."""
    case = reference.load_case(name)
    arrays = {name: torch.from_numpy(array).to(device) for name, array in case.arrays.items()}
    config = DETRPoseConfig.from_variant(case.variant, skeleton=case.dataset)

    def output_set(prefix, layer=...):
        return {
            "logits": arrays[f"{prefix}_logits"][layer],
            "pred_keypoints": arrays[f"{prefix}_keypoints"][layer],
        }

    last = len(arrays["train_logits"]) - 1
    outputs = {"" if layer == last else str(layer): output_set("train", layer) for layer in range(last + 1)}
    outputs |= {name: output_set(f"train_{name}") for name in ("initial", "encoder")}
    denoising_outputs = {str(layer): output_set("dn", layer) for layer in range(last + 1)}
    denoising_outputs["initial"] = output_set("dn_initial")
    return config, outputs, case.labels(device), case.denoising_queries(device), denoising_outputs, case.json


# Reference numbers of the official implementation


@pytest.mark.parametrize("case", (*reference.CASES, *reference.ECPOSE_CASES))
def test_losses_match_the_reference(case, device):
    config, outputs, labels, queries, denoising_outputs, expected = read_reference(case, device)
    validate_labels(labels, config, batch_size=2)
    _, loss_dict = pose_estimation_loss(outputs, labels, config, queries, denoising_outputs)
    wanted = {
        reference.our_loss_name(name): value
        for name, value in {**expected["losses"], **expected["denoising_losses"]}.items()
    }
    assert {name: value.item() for name, value in loss_dict.items()} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("case", (*reference.CASES, *reference.ECPOSE_CASES))
def test_sum_matches_the_reference(case, device):
    config, outputs, labels, *_, expected = read_reference(case, device)
    loss, loss_dict = pose_estimation_loss(outputs, labels, config)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert loss.item() == pytest.approx(sum(value.item() for value in loss_dict.values()), rel=1e-6)


@pytest.mark.parametrize("case", (*reference.CASES, *reference.ECPOSE_CASES))
def test_attention_mask_matches_the_reference(case, device):
    config, *_, queries, _, _ = read_reference(case, device)
    mask = denoising_attention_mask(queries.num_slots, queries.num_groups, config.num_queries, device)
    assert torch.equal(mask, queries.attention_mask)


@pytest.mark.parametrize("case", (*reference.CASES, *reference.ECPOSE_CASES))
def test_denoising_leaves_the_losses_of_matching_queries_alone(case, device):
    config, outputs, labels, queries, denoising_outputs, _ = read_reference(case, device)
    _, without = pose_estimation_loss(outputs, labels, config)
    _, with_denoising = pose_estimation_loss(outputs, labels, config, queries, denoising_outputs)
    assert len(with_denoising) > len(without)
    assert all(torch.equal(with_denoising[name], value) for name, value in without.items())


# Keypoint similarity


def test_keypoint_similarity_by_hand():
    # Two keypoints 0.02 and 0.03 away, and an unlabeled one far away.
    pred = torch.tensor([[0.52, 0.5], [0.5, 0.53], [0.0, 0.0]])
    target = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.9, 0.9]])
    visibility, sigmas = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.05, 0.1, 0.025])
    similarity = keypoint_similarity(pred, target, visibility, torch.tensor(0.04), sigmas)
    first = math.exp(-(0.02**2) / (2 * 0.04 * 0.1**2))
    second = math.exp(-(0.03**2) / (2 * 0.04 * 0.2**2))
    assert similarity.item() == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("distance", "visible", "expected"),
    [
        (0.0, 1.0, 1.0),  # a perfect prediction
        (1e6, 1.0, 1e-6),  # as far away as can be
        (0.0, 0.0, 1e-6),  # nothing labeled
    ],
)
def test_keypoint_similarity_at_its_limits(distance, visible, expected):
    target = torch.full((4, 2), 0.5)
    similarity = keypoint_similarity(
        target + distance, target, torch.full((4,), visible), torch.tensor(0.1), torch.full((4,), 0.05)
    )
    assert similarity.item() == pytest.approx(expected, rel=1e-5)


def test_keypoint_similarity_of_all_pairs():
    pred, target = torch.rand(5, 3, 2), torch.rand(4, 3, 2)
    visibility, area, sigmas = torch.ones(4, 3), torch.rand(4) + 0.5, torch.tensor([0.3, 0.4, 0.5])
    pairs = keypoint_similarity(pred[:, None], target, visibility, area, sigmas)
    assert pairs.shape == (5, 4)
    one = keypoint_similarity(pred[2], target[3], visibility[3], area[3], sigmas)
    assert pairs[2, 3].item() == pytest.approx(one.item(), rel=1e-6)


# Matching


def pair_cost(logits, pred, label, person, config):
    """Returns the cost of one query and one person, computed with scalars."""
    score = 1 / (1 + math.exp(-logits.detach()[label["class_labels"][person]]))
    alpha, gamma = config.matcher_alpha, config.matcher_gamma
    focal = alpha * (1 - score) ** gamma * -math.log(score) - (1 - alpha) * score**gamma * -math.log(1 - score)
    distance, similarity, labelled = 0.0, 0.0, 0
    for (x, y), (tx, ty, visible), sigma in zip(
        pred.tolist(), label["keypoints"][person].tolist(), config.keypoint_schema.sigmas, strict=True
    ):
        if visible:
            distance += abs(x - tx) + abs(y - ty)
            variance = label["area"][person].item() * (2 * sigma) ** 2
            similarity += math.exp(-((x - tx) ** 2 + (y - ty) ** 2) / (2 * variance))
            labelled += 1
    weights = config.matcher_class_cost, config.matcher_keypoints_cost, config.matcher_similarity_cost
    return weights[0] * focal + weights[1] * distance + weights[2] * (1 - similarity / labelled)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [(2.0, 10.0, 4.0), (1.0, 0.0, 0.1), (0.1, 1.0, 0.0), (0.1, 0.0, 1.0)])
def test_matching_is_the_cheapest_of_all(weights, seed):
    # Wide keypoints, so that the similarity of random poses is not nearly 0.
    costs = ("matcher_class_cost", "matcher_keypoints_cost", "matcher_similarity_cost")
    config = make_config(num_classes=3, sigma=0.5, **dict(zip(costs, weights, strict=True)))
    labels = make_labels([3, 1, 0], config, seed)
    outputs = loss_detrpose.stack_output_sets(make_outputs(3, config, num_queries=5, names=("0", ""), seed=seed))
    matches = match_people(outputs, pad_targets(labels), config)
    for layer, image in itertools.product(range(2), range(3)):
        count = len(labels[image]["area"])
        costs = [
            [
                pair_cost(outputs.logits[layer, image, query], outputs.keypoints[layer, image, query], *person, config)
                for person in ((labels[image], index) for index in range(count))
            ]
            for query in range(5)
        ]
        best = min(
            itertools.permutations(range(5), count),
            key=lambda queries, costs=costs: sum(costs[query][person] for person, query in enumerate(queries)),
        )
        expected = torch.full((5,), -1)
        expected[list(best)] = torch.arange(count)
        assert torch.equal(matches[layer, image], expected)


def test_more_people_than_queries():
    config = make_config()
    labels = make_labels([5, 1], config)
    matches = match_people(
        loss_detrpose.stack_output_sets(make_outputs(2, config, num_queries=3, names=("",))),
        pad_targets(labels),
        config,
    )
    assert (matches[0, 0] >= 0).all() and len(set(matches[0, 0].tolist())) == 3
    assert sorted(matches[0, 1].tolist()) == [-1, -1, 0]


class CountingSynchronisations(TorchDispatchMode):
    """Counts operations that make the host wait for the device; `.cpu()` of a host tensor is invisible here."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2")
        if name == "index":
            self.count += any(index is not None and index.dtype == torch.bool for index in args[1])
        return function(*args, **(kwargs or {}))


def test_one_transfer_for_all_matchings(monkeypatch):
    config = make_config()
    labels = make_labels([2, 3], config)
    queries = make_denoising_queries(labels, config, (64, 64))
    denoising_outputs = make_outputs(2, config, queries.labels.shape[1], ("0", "1", "initial"))
    transfers, original = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor.shape) or original(tensor))
    with CountingSynchronisations() as synchronisations:
        make_denoising_queries(labels, config, (64, 64))
        pose_estimation_loss(make_outputs(2, config), labels, config, queries, denoising_outputs)
    assert len(transfers) == 1
    assert synchronisations.count == 0
    with CountingSynchronisations() as synchronisations:
        validate_labels(labels, config, 2)
    assert synchronisations.count == 1


@pytest.mark.parametrize(
    ("key", "value"), [("logits", math.nan), ("pred_keypoints", math.nan), ("pred_keypoints", math.inf)]
)
def test_outputs_that_are_not_finite_are_reported(key, value):
    config = make_config()
    outputs = make_outputs(2, config)
    with torch.no_grad():
        outputs[""][key][1, 2] = value
    with pytest.raises(ValueError, match="not finite.*output set 1, image 1, query 2"):
        pose_estimation_loss(outputs, make_labels([1, 2], config), config)


def test_costs_of_padding_do_not_matter():
    costs = torch.tensor([[[[5.0, -99.0], [1.0, -99.0]]]])
    assert assign(costs, torch.tensor([[True, False]])).tolist() == [[[-1, 0]]]


def test_certain_scores_have_a_finite_cost():
    config = make_config()
    labels, outputs = make_labels([2, 1], config), make_outputs(2, config)
    with torch.no_grad():
        outputs[""]["logits"] *= 1000
    assert pose_estimation_loss(outputs, labels, config)[0].isfinite()


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        ([[0, -1, 1], [0, 1, -1], [1, 0, -1]], [0, 0, 1]),  # query 0: two to one; query 1: a tie
        ([[1, -1], [0, -1]], [0, -1]),  # a tie goes to the lower index, whichever set comes first
        ([[2, 0], [1, 0], [2, 1], [1, 0]], [1, 0]),  # a tie above index 0, and one clear majority
        ([[0, -1, -1], [-1, 0, -1], [-1, -1, 0]], [0, 0, 0]),  # one person keeps three queries
        ([[-1, -1, -1], [-1, -1, -1], [-1, -1, 2]], [-1, -1, 2]),  # one vote beats any number of abstentions
    ],
)
def test_union_matches(matches, expected):
    # The second image holds the same matches with the sets in reverse order: their order must not matter.
    matches = torch.stack([torch.tensor(matches), torch.tensor(matches).flip(0)], dim=1)
    assert union_matches(matches, num_people=3).tolist() == [expected, expected]


# Losses


def single_match(config, logits, offset):
    """One query per row of `logits`; the first is matched to a person of class 1 at `offset` from its keypoints."""
    person = torch.full((1, config.num_keypoints, 3), 0.5)
    person[..., 2] = 2
    labels = [{"class_labels": torch.tensor([1]), "keypoints": person, "area": torch.tensor([0.25])}]
    keypoints = torch.full((1, 1, len(logits), config.num_keypoints, 2), 0.5) + torch.tensor([offset, 0.0])
    outputs = OutputSets(torch.tensor(logits)[None, None].requires_grad_(), keypoints.requires_grad_())
    matches = torch.tensor([[0] + [-1] * (len(logits) - 1)])
    return outputs, pad_targets(labels).at(matches), labels


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_ksvf_by_hand():
    config = make_config()
    outputs, matched, _ = single_match(config, [[0.3, -0.7], [1.2, 0.4]], offset=0.04)
    sigmas = torch.tensor(config.keypoint_schema.sigmas)
    similarity = math.exp(-(0.04**2) / (2 * 0.25 * 0.1**2))
    score = sigmoid(-0.7)
    expected = similarity * -(similarity * math.log(score) + (1 - similarity) * math.log(1 - score))
    for logit in (0.3, 1.2, 0.4):
        expected += 0.25 * sigmoid(logit) ** 2 * -math.log(1 - sigmoid(logit))
    assert ksvf_loss(outputs, matched, sigmas, config).tolist() == pytest.approx([expected], rel=1e-5)


def test_focal_by_hand():
    config = make_config(focal_loss_alpha=0.3, focal_loss_gamma=1.5)
    outputs, matched, _ = single_match(config, [[0.3, -0.7], [1.2, 0.4]], offset=0.04)
    expected = 0.3 * (1 - sigmoid(-0.7)) ** 1.5 * -math.log(sigmoid(-0.7))
    for logit in (0.3, 1.2, 0.4):
        expected += 0.7 * sigmoid(logit) ** 1.5 * -math.log(1 - sigmoid(logit))
    assert focal_loss(outputs, matched, None, config).tolist() == pytest.approx([expected], rel=1e-5)


def test_the_configuration_picks_the_classification_loss():
    outputs, _, labels = single_match(make_config(), [[0.3, -0.7]], offset=0.04)
    output_sets = {"": {"logits": outputs.logits[0], "pred_keypoints": outputs.keypoints[0]}}
    losses = {
        name: pose_estimation_loss(output_sets, labels, make_config(classification_loss=name))[1]
        for name in ("ksvf", "focal")
    }
    similarity = math.exp(-(0.04**2) / (2 * 0.25 * 0.1**2))
    score = sigmoid(-0.7)
    ksvf = similarity * -(similarity * math.log(score) + (1 - similarity) * math.log(1 - score))
    ksvf += 0.25 * sigmoid(0.3) ** 2 * -math.log(1 - sigmoid(0.3))
    focal = 0.25 * (1 - score) ** 2 * -math.log(score) + 0.75 * sigmoid(0.3) ** 2 * -math.log(1 - sigmoid(0.3))
    assert losses["ksvf"]["loss_class"].item() == pytest.approx(2 * ksvf, rel=1e-5)
    assert losses["focal"]["loss_class"].item() == pytest.approx(2 * focal, rel=1e-5)
    for name in ("loss_keypoints", "loss_similarity"):
        assert torch.equal(losses["ksvf"][name], losses["focal"][name])


def test_ksvf_does_not_differentiate_the_similarity():
    config = make_config()
    outputs, matched, _ = single_match(config, [[0.3, -0.7]], offset=0.04)
    sigmas = torch.tensor(config.keypoint_schema.sigmas)
    ksvf_loss(outputs, matched, sigmas, config).sum().backward()
    assert outputs.keypoints.grad is None
    # d/dx of q · BCE(x, q) is q · (p - q); of the background α p² · BCE(x, 0), with α p² fixed, α p³.
    similarity = math.exp(-(0.04**2) / (2 * 0.25 * 0.1**2))
    expected = [0.25 * sigmoid(0.3) ** 3, similarity * (sigmoid(-0.7) - similarity)]
    assert outputs.logits.grad.flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_keypoints", [1, 3])
def test_keypoint_losses_by_hand(num_keypoints):
    config = make_config(num_keypoints, weight_loss_keypoints=3.0, weight_loss_similarity=5.0)
    outputs, _, labels = single_match(config, [[0.3, -0.7]], offset=0.04)
    labels[0]["keypoints"][0, 0, 1] += 0.02  # 0.04 in x and 0.02 in y away
    output_sets = {"": {"logits": outputs.logits[0], "pred_keypoints": outputs.keypoints[0]}}
    _, losses = pose_estimation_loss(output_sets, labels, config)
    far = math.exp(-(0.04**2 + 0.02**2) / (2 * 0.25 * 0.1**2))
    near = math.exp(-(0.04**2) / (2 * 0.25 * 0.1**2))
    similarity = (far + (num_keypoints - 1) * near) / num_keypoints
    assert losses["loss_keypoints"].item() == pytest.approx(3 * (0.04 * num_keypoints + 0.02), rel=1e-4)
    assert losses["loss_similarity"].item() == pytest.approx(5 * (1 - similarity), rel=1e-4)


def test_keypoint_losses_share_one_union_matching():
    # One person, two sets that match different queries: both queries learn its keypoints in both sets.
    config = make_config(num_keypoints=1, weight_loss_keypoints=1.0)
    labels = [
        {
            "class_labels": torch.tensor([1]),
            "keypoints": torch.tensor([[[0.5, 0.5, 1.0]]]),
            "area": torch.tensor([0.1]),
        }
    ]
    offsets = {"": [0.1, 0.5, 0.9], "0": [0.3, 0.2, 0.9]}  # query 0 is nearest in the last set, query 1 in "0"
    output_sets = {
        name: {
            "logits": torch.zeros(1, 3, 2),
            "pred_keypoints": torch.tensor(values)[None, :, None, None] * torch.tensor([1.0, 0.0]) + 0.5,
        }
        for name, values in offsets.items()
    }
    _, losses = pose_estimation_loss(output_sets, labels, config)
    assert losses["loss_keypoints"].item() == pytest.approx((0.1 + 0.5) / 2, rel=1e-5)
    assert losses["loss_keypoints_0"].item() == pytest.approx((0.3 + 0.2) / 2, rel=1e-5)


def test_losses_of_a_batch_are_averages():
    config = make_config()
    labels, outputs = make_labels([2, 1], config), make_outputs(2, config)
    twice = {name: {key: torch.cat([value] * 2) for key, value in sets.items()} for name, sets in outputs.items()}
    once, _ = pose_estimation_loss(outputs, labels, config)
    assert pose_estimation_loss(twice, labels * 2, config)[0].item() == pytest.approx(once.item(), rel=1e-5)


@pytest.mark.parametrize("counts", [[0, 2], [2, 0], [0, 0]])
@pytest.mark.parametrize("classification_loss", ["ksvf", "focal"])
def test_images_without_people(counts, classification_loss):
    config = make_config(classification_loss=classification_loss)
    outputs = make_outputs(2, config)
    loss, loss_dict = pose_estimation_loss(outputs, make_labels(counts, config), config)
    loss.backward()
    assert loss.isfinite() and loss > 0
    for image, count in enumerate(counts):
        for output_set in outputs.values():
            assert output_set["logits"].grad[image].isfinite().all()
            assert (output_set["logits"].grad[image] != 0).all()
            assert output_set["pred_keypoints"].grad[image].isfinite().all()
            assert output_set["pred_keypoints"].grad[image].any() == (count > 0)
    if not any(counts):
        assert loss_dict["loss_keypoints"] == 0 and loss_dict["loss_similarity"] == 0


def test_people_without_a_labelled_keypoint_are_no_targets():
    config = make_config(num_denoising=0)
    labels, outputs = make_labels([2, 1], config), make_outputs(2, config)
    with_stranger = [
        {
            "class_labels": torch.cat([torch.tensor([1]), image["class_labels"]]),
            "keypoints": torch.cat([torch.zeros(1, 3, 3), image["keypoints"]]),
            "area": torch.cat([torch.zeros(1), image["area"]]),
        }
        for image in labels
    ]
    validate_labels(with_stranger, config, 2)
    loss, _ = pose_estimation_loss(outputs, with_stranger, config)
    loss.backward()
    assert loss.item() == pytest.approx(pose_estimation_loss(outputs, labels, config)[0].item(), rel=1e-6)
    assert all(value.grad.isfinite().all() for output_set in outputs.values() for value in output_set.values())


def test_hidden_and_visible_keypoints_count_alike():
    config = make_config()
    labels, outputs = make_labels([2, 1], config), make_outputs(2, config)
    assert {0, 1, 2} <= {int(value) for image in labels for value in image["keypoints"][..., 2].flatten()}
    clipped = [{**image, "keypoints": image["keypoints"].clone()} for image in labels]
    for image in clipped:
        image["keypoints"][..., 2].clamp_(max=1)
    assert torch.equal(
        pose_estimation_loss(outputs, labels, config)[0], pose_estimation_loss(outputs, clipped, config)[0]
    )


def test_classes_are_exchangeable():
    config = make_config(num_classes=4)
    labels, outputs = make_labels([3, 2], config), make_outputs(2, config)
    loss, _ = pose_estimation_loss(outputs, labels, config)
    order = torch.tensor([2, 0, 3, 1])
    moved_outputs = {name: {**sets, "logits": sets["logits"][..., order]} for name, sets in outputs.items()}
    moved_labels = [{**image, "class_labels": order.argsort()[image["class_labels"]]} for image in labels]
    assert len({int(label) for image in labels for label in image["class_labels"]}) > 1
    assert pose_estimation_loss(moved_outputs, moved_labels, config)[0].item() == pytest.approx(loss.item(), rel=1e-5)
    assert pose_estimation_loss(outputs, moved_labels, config)[0].item() != pytest.approx(loss.item(), rel=1e-3)


def test_half_precision_is_computed_in_float32():
    config = make_config()
    labels, outputs = make_labels([2, 1], config), make_outputs(2, config)
    halves = {name: {key: value.bfloat16() for key, value in sets.items()} for name, sets in outputs.items()}
    rounded = {name: {key: value.float() for key, value in sets.items()} for name, sets in halves.items()}
    expected, _ = pose_estimation_loss(rounded, labels, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, loss_dict = pose_estimation_loss(halves, labels, config)
    assert all(value.dtype == torch.float32 for value in loss_dict.values())
    assert torch.equal(loss, expected)


def test_counts_are_averaged_over_processes_in_one_exchange(monkeypatch):
    exchanges = []

    def add_another_process(counts):
        exchanges.append(counts.tolist())
        counts += torch.tensor([5.0, 1.0])

    config = make_config()
    labels, outputs = make_labels([2, 1], config), make_outputs(2, config, names=("",))
    _, alone = pose_estimation_loss(outputs, labels, config)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True, raising=False)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2, raising=False)
    monkeypatch.setattr(torch.distributed, "all_reduce", add_another_process, raising=False)
    _, together = pose_estimation_loss(outputs, labels, config)
    assert exchanges == [[3.0, 3.0]]  # three people, each with one match
    assert together["loss_class"].item() == pytest.approx(alone["loss_class"].item() * 3 / 4)
    assert together["loss_keypoints"].item() == pytest.approx(alone["loss_keypoints"].item() * 3 / 2)


# Denoising losses


def test_denoising_losses_by_hand():
    # Two people in one image and one in the other; every positive is 0.01 to the right of its person.
    config = make_config(num_keypoints=1, num_denoising=4, label_noise_ratio=1.0, weight_loss_keypoints=1.0)
    labels = make_labels([2, 1], config)
    queries = make_denoising_queries(labels, config, (64, 64))
    assert (queries.num_groups, queries.num_slots) == (2, 2)
    keypoints = torch.full((2, 8, 1, 2), 0.7)
    for image, slot, person in [(0, 0, 0), (0, 1, 1), (0, 4, 0), (0, 5, 1), (1, 0, 0), (1, 4, 0)]:
        keypoints[image, slot] = labels[image]["keypoints"][person, :, :2] + torch.tensor([0.01, 0.0])
    denoising_outputs = {"0": {"logits": torch.full((2, 8, 2), -1.0), "pred_keypoints": keypoints}}
    _, losses = pose_estimation_loss(make_outputs(2, config), labels, config, queries, denoising_outputs)
    assert losses["loss_keypoints_denoising_0"].item() == pytest.approx(0.01, rel=1e-4)
    similarities = [math.exp(-(0.01**2) / (2 * area * 0.1**2)) for image in labels for area in image["area"].tolist()]
    assert losses["loss_similarity_denoising_0"].item() == pytest.approx(4 * (1 - sum(similarities) / 3), rel=1e-3)
    # Negatives and empty slots are background: 6 of 32 labels are positive, 26 are not.
    score = sigmoid(-1)
    positive = sum(q * -(q * math.log(score) + (1 - q) * math.log(1 - score)) for q in similarities)
    background = 26 * 0.25 * score**2 * -math.log(1 - score)
    expected = 2 * (2 * positive + background) / 6
    assert losses["loss_class_denoising_0"].item() == pytest.approx(expected, rel=1e-4)


def test_denoising_arguments_must_fit():
    config = make_config()
    labels = make_labels([2, 1], config)
    queries = make_denoising_queries(labels, config, (64, 64))
    outputs = make_outputs(2, config)
    denoising_outputs = make_outputs(2, config, queries.labels.shape[1], ("0", "initial"))
    with pytest.raises(ValueError, match="both"):
        pose_estimation_loss(outputs, labels, config, queries)
    with pytest.raises(ValueError, match="both"):
        pose_estimation_loss(outputs, labels, config, None, denoising_outputs)
    with pytest.raises(ValueError, match="2 slots .* up to 3 people"):
        pose_estimation_loss(outputs, make_labels([3, 1], config), config, queries, denoising_outputs)


# Checks of labels


def test_good_labels_pass():
    config = make_config()
    validate_labels(make_labels([2, 0, 1], config), config, 3)
    validate_labels(make_labels([0, 0], config), config, 2)
    validate_labels([{**image, "image_id": 7} for image in make_labels([1], config)], config, 1)


def with_value(key, index, value):
    def edit(image):
        image[key][index] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda image: image.pop("area"), r"labels\[2\]` lacks \['area'\]"),
        (lambda image: image.update(area=[0.1, 0.2]), r"labels\[2\]\['area'\].* but got a list"),
        (
            lambda image: image.update(area=torch.ones(3)),
            r"'area'.*shape \(2,\), but got torch.float32 of shape \(3,\)",
        ),
        (lambda image: image.update(area=torch.ones(2).long()), "'area'.*floating point.*torch.int64"),
        (lambda image: image.update(class_labels=torch.ones(2)), "'class_labels'.*torch.int64.*torch.float32"),
        (lambda image: image.update(class_labels=torch.ones(2, 1).long()), r"'class_labels'.*\(2,\).*\(2, 1\)"),
        (lambda image: image.update(keypoints=torch.rand(2, 4, 3)), r"'keypoints'.*\(2, 3, 3\).*\(2, 4, 3\)"),
        (lambda image: image.update(keypoints=torch.rand(2, 3, 2)), r"'keypoints'.*\(2, 3, 3\).*\(2, 3, 2\)"),
        (lambda image: image.update(keypoints=torch.rand(1, 3, 3)), r"'keypoints'.*\(2, 3, 3\).*\(1, 3, 3\)"),
        (with_value("class_labels", 1, 2), r"labels\[2\]\['class_labels'\].* from 0 to 1, but person 1 has 2"),
        (with_value("class_labels", 0, -1), r"labels\[2\]\['class_labels'\].*person 0 has -1"),
        (with_value("keypoints", (1, 2, 0), float("nan")), r"labels\[2\]\['keypoints'\].*person 1 has nan"),
        (with_value("keypoints", (0, 1, 1), float("inf")), r"labels\[2\]\['keypoints'\].*person 0 has inf"),
        (with_value("keypoints", (0, 1, 1), 320.0), r"labels\[2\]\['keypoints'\].*not pixels, but person 0 has 320"),
        (with_value("keypoints", (1, 0, 2), 0.5), r"labels\[2\]\['keypoints'\].*0, 1 or 2, but person 1 has 0.5"),
        (with_value("keypoints", (1, 0, 2), 3.0), r"labels\[2\]\['keypoints'\].*0, 1 or 2, but person 1 has 3"),
        (with_value("keypoints", (1, 0, 2), float("nan")), r"labels\[2\]\['keypoints'\].*0, 1 or 2.* has nan"),
        (with_value("area", 1, 0.0), r"labels\[2\]\['area'\].*above 0.*person 1 has 0.0"),
        (with_value("area", 1, 1e-45), r"labels\[2\]\['area'\].*above 0.*person 1 has 1\.4.*e-45"),
        (with_value("area", 0, float("nan")), r"labels\[2\]\['area'\].*person 0 has nan"),
        (with_value("area", 0, 5000.0), r"labels\[2\]\['area'\].*not pixels, but person 0 has 5000"),
    ],
)
def test_bad_labels_are_reported(edit, message):
    config = make_config()
    labels = make_labels([1, 0, 2, 1], config)
    validate_labels(labels, config, 4)
    edit(labels[2])
    with pytest.raises(ValueError, match=message):
        validate_labels(labels, config, 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "list of 2 dictionaries.*0 of them"),
        ({"class_labels": []}, "list of 2 dictionaries.*a dict"),
        ([None, None], r"labels\[0\]` must be a dictionary, but got a NoneType"),
    ],
)
def test_labels_that_are_no_list_of_dictionaries(labels, message):
    with pytest.raises(ValueError, match=message):
        validate_labels(labels, make_config(), 2)


# Classes with different keypoints


def make_class_config():
    """Class 0 has the keypoints a and b, class 2 has c and a; the sigma of a differs."""
    first = KeypointSchema(names=("a", "b"), sigmas=(0.05, 0.1))
    second = KeypointSchema(names=("c", "a"), sigmas=(0.2, 0.15))
    schema = unite_schemas({0: first, 2: second}, {0: "first", 2: "second"})
    return DETRPoseConfig(keypoint_schema=schema, id2label={0: "first", 1: "N/A", 2: "second"})


def make_class_labels():
    """One of each class, all of whose keypoints are at (0.5, 0.5)."""
    keypoints = torch.tensor([[[0.5, 0.5, 2], [0.5, 0.5, 2], [0, 0, 0]], [[0.5, 0.5, 2], [0, 0, 0], [0.5, 0.5, 1]]])
    return [{"class_labels": torch.tensor([0, 2]), "keypoints": keypoints, "area": torch.tensor([0.04, 0.09])}]


def kernel(distance, area, sigma):
    return math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2))


def test_similarity_of_classes_by_hand():
    config, labels = make_class_config(), make_class_labels()
    # The first query is 0.03 to the right of everything and the second 0.05 below, so both could be either.
    offsets = torch.tensor([[0.03, 0.0], [0.0, 0.05]])
    keypoints = (0.5 + offsets)[None, :, None].expand(1, 2, 3, 2).clone().requires_grad_()
    logits = torch.tensor([[[4.0, -4.0, -4.0], [-4.0, -4.0, 4.0]]])
    outputs = {"": {"logits": logits, "pred_keypoints": keypoints}}
    targets = pad_targets(labels)
    costs = matching_costs(stack_output_sets(outputs), targets, config)[0, 0]
    first = [(kernel(d, 0.04, 0.05) + kernel(d, 0.04, 0.1)) / 2 for d in (0.03, 0.05)]
    second = [(kernel(d, 0.09, 0.2) + kernel(d, 0.09, 0.15)) / 2 for d in (0.03, 0.05)]
    class_cost = focal_cost(logits[0], config.matcher_alpha, config.matcher_gamma)
    for query, distance in enumerate((0.03, 0.05)):
        for person, (label, similarity) in enumerate(((0, first), (2, second))):
            expected = config.matcher_class_cost * class_cost[query, label].item()
            expected += config.matcher_keypoints_cost * 2 * distance  # of the two keypoints that the class has
            expected += config.matcher_similarity_cost * (1 - similarity[query])
            assert costs[query, person].item() == pytest.approx(expected, rel=1e-4)

    _, losses = pose_estimation_loss(outputs, labels, config)
    similarity = config.weight_loss_similarity * (2 - first[0] - second[1]) / 2
    assert losses["loss_similarity"].item() == pytest.approx(similarity, rel=1e-4)
    assert losses["loss_keypoints"].item() == pytest.approx(config.weight_loss_keypoints * (0.03 + 0.05), rel=1e-4)
    weights = torch.tensor([first[0], second[1]])
    matched = weights * F.binary_cross_entropy_with_logits(torch.tensor([4.0, 4.0]), weights, reduction="none")
    score = torch.tensor(-4.0).sigmoid()
    others = 4 * config.focal_loss_alpha * score**config.focal_loss_gamma * -torch.log1p(-score)
    expected = config.weight_loss_class * (matched.sum() + others) / 2
    assert losses["loss_class"].item() == pytest.approx(expected.item(), rel=1e-4)

    sum(losses.values()).backward()
    assert keypoints.grad[0, 0, 2].tolist() == keypoints.grad[0, 1, 1].tolist() == [0, 0]  # what the classes lack
    assert keypoints.grad[0, 0, :2, 0].min() > 0 and keypoints.grad[0, 1, ::2, 1].min() > 0


def test_classes_that_have_all_keypoints_change_nothing():
    config = make_config(num_classes=2, sigma=0.07)
    schema = KeypointSchema.of(config.keypoint_schema)
    same = DETRPoseConfig(
        keypoint_schema=unite_schemas({0: schema, 1: schema}, config.id2label), id2label=config.id2label
    )
    labels, outputs = make_labels([2, 0, 3], config), make_outputs(3, config)
    _, expected = pose_estimation_loss(outputs, labels, config)
    _, losses = pose_estimation_loss(outputs, labels, same)
    assert {name: value.item() for name, value in losses.items()} == {name: x.item() for name, x in expected.items()}
