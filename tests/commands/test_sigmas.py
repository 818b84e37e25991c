"""Sigmas estimated from images that were annotated twice."""

import json

import numpy as np
import pytest

from transformers_detrpose import COCO_PERSON, KeypointSchema
from transformers_detrpose.commands import sigmas
from transformers_detrpose.data import read_annotations, read_schema
from transformers_detrpose.data.sigma_estimation import estimate_sigmas
from transformers_detrpose.pose_arrays import keypoint_similarity

BIRD = KeypointSchema(("beak", "left_wing", "right_wing"), ((0, 1), (0, 2)), ((1, 2),), (0.06, 0.2, 0.2))
CATEGORY = BIRD.to_coco_category(1, "bird")
SIDES = (120.0, 80.0)


def true_poses(num_images=400, seed=0):
    """Returns the true keypoints (images, 3, K, 2) of three birds in each image, far from each other."""
    rng = np.random.default_rng(seed)
    centers = 100 + 300.0 * np.arange(3)[None, :, None, None] + rng.uniform(-20, 20, (num_images, 3, 1, 2))
    return centers + rng.uniform(-40, 40, (num_images, 3, 3, 2))


def annotate(poses, deviations, seed, visibility=2, shuffle=True, **fields):
    """Returns the COCO content of somebody whose keypoints deviate by `deviations` (K,) roots of the area."""
    rng = np.random.default_rng(seed)
    area = SIDES[0] * SIDES[1]
    noise = rng.normal(size=poses.shape) * np.sqrt(area) * np.asarray(deviations)[:, None]
    people = []
    for image, own in enumerate(poses + noise):
        for number in rng.permutation(3) if shuffle else range(3):
            points = np.column_stack([own[number], np.full(3, visibility)]).reshape(-1).tolist()
            person = {"id": len(people) + 1, "image_id": image, "category_id": 1, "keypoints": points, "area": area}
            people.append({**person, **fields})
    images = [{"id": image, "file_name": f"{image}.jpg"} for image in range(len(poses))]
    return {"images": images, "annotations": people, "categories": [CATEGORY]}


class Files:
    def __init__(self, folder):
        self.folder = folder

    def run(self, first, second, *options):
        for name, content in (("first", first), ("second", second)):
            (self.folder / f"{name}.json").write_text(json.dumps(content))
        line = ["--annotations", str(self.folder / "first.json"), "--again", str(self.folder / "second.json")]
        return sigmas.main([*line, *map(str, options)])


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def estimate(first, second):
    first, second = read_annotations(first), read_annotations(second)
    return estimate_sigmas(first, second, first.schema)


def test_known_deviations_are_found(files, tmp_path, capsys):
    """Two annotators who each deviate by tau in x and in y have a sigma of 2 tau."""
    poses, taus = true_poses(), np.array([0.02, 0.05, 0.05])
    first, second = annotate(poses, taus, 1), annotate(poses, taus, 2)
    assert files.run(first, second, "--output", tmp_path / "schema.json") == 0
    text = capsys.readouterr().out
    assert "1200 people in both files; 0 and 0 in one only" in text
    schema = KeypointSchema.of(read_schema(tmp_path / "schema.json"))
    np.testing.assert_allclose(schema.sigmas, 2 * taus, rtol=0.05)
    assert (schema.names, schema.edges, schema.flip_pairs) == (BIRD.names, BIRD.edges, BIRD.flip_pairs)
    assert schema.sigmas[1] == schema.sigmas[2]  # left and right
    assert read_annotations(tmp_path / "first.json", read_schema(tmp_path / "schema.json")).schema == schema

    found = estimate(first, second)
    assert found.counts.tolist() == [1200, 2400, 2400]
    np.testing.assert_allclose(found.errors, found.sigmas / (2 * np.sqrt(found.counts)))
    np.testing.assert_allclose(found.medians, 2 * taus, rtol=0.07)


def test_the_mean_similarity_of_two_annotations():
    """With the estimated sigma it is 8/9, as the documentation says."""
    poses, taus = true_poses(), [0.04, 0.04, 0.04]
    first, second = annotate(poses, taus, 1, shuffle=False), annotate(poses, taus, 2, shuffle=False)
    sigma = estimate(first, second).sigmas
    points = [read_annotations(content).instances.keypoints[..., :2] for content in (first, second)]
    similarity = keypoint_similarity(points[0] - points[1], np.full(len(points[0]), SIDES[0] * SIDES[1]), sigma)
    assert similarity.mean() == pytest.approx(8 / 9, abs=0.01)


def test_one_exact_annotation():
    """If only one of the two deviates, there is half the variance."""
    poses = true_poses()
    found = estimate(annotate(poses, [0, 0, 0], 1), annotate(poses, [0.05] * 3, 2))
    np.testing.assert_allclose(found.sigmas, 0.05 * np.sqrt(2), rtol=0.05)


def test_a_hand_made_case(files, capsys):
    poses = np.array([[[[100, 100], [140, 100], [60, 100]]] * 3], dtype=float) + 300 * np.arange(3)[:, None, None]
    moved = poses + np.array([[3, 4], [0, 0], [0, 8]])
    found = estimate(annotate(poses, [0] * 3, 0, area=2500.0), annotate(moved, [0] * 3, 0, area=2500.0))
    # d²/s² is 25/2500 for the beak; 0 and 64/2500 for the wings.
    np.testing.assert_allclose(found.sigmas, [0.1, np.sqrt(32 / 2500), np.sqrt(32 / 2500)])
    np.testing.assert_allclose(found.medians, found.sigmas / np.sqrt(np.log(2)))


def test_swapped_keypoints_are_told_by_the_median():
    poses = true_poses()
    swapped = poses.copy()
    swapped[::20] = swapped[::20][:, :, [0, 2, 1]]
    found = estimate(annotate(poses, [0.02] * 3, 1), annotate(swapped, [0.02] * 3, 2))
    assert found.sigmas[1] > 2 * found.medians[1] and found.medians[1] == pytest.approx(0.04, rel=0.1)
    assert found.sigmas[0] == pytest.approx(0.04, rel=0.05)


def test_only_people_and_keypoints_in_both_count():
    poses = true_poses(20)
    first, second = annotate(poses, [0.02] * 3, 1), annotate(poses, [0.02] * 3, 2)
    second["annotations"][0]["keypoints"][2] = 0  # the beak of a bird
    second["annotations"][1] |= {"iscrowd": 1}
    second["annotations"][2]["keypoints"] = [value + 5000 for value in second["annotations"][2]["keypoints"]]
    second["annotations"][2]["keypoints"][2::3] = [2, 2, 2]
    second["annotations"] += [{**entry, "id": 1000 + entry["id"]} for entry in second["annotations"][3:6]]
    second["images"].append({"id": 99, "file_name": "other.jpg"})
    found = estimate(first, second)
    assert (found.num_pairs, found.num_alone) == (58, (2, 4))
    assert found.counts.tolist() == [57, 116, 116]


def test_other_ids_of_images_and_categories():
    poses = true_poses(30)
    first, second = annotate(poses, [0.02] * 3, 1), annotate(poses, [0.02] * 3, 2)
    expected = estimate(first, second)
    second["images"] = [{**image, "id": 500 - image["id"]} for image in second["images"]]
    second["categories"] = [{**CATEGORY, "id": 4}]
    for entry in second["annotations"]:
        entry |= {"image_id": 500 - entry["image_id"], "category_id": 4}
    np.testing.assert_allclose(estimate(first, second).sigmas, expected.sigmas)
    second["categories"][0]["name"] = "plane"
    assert estimate(first, second).num_pairs == 0


def test_too_few(files, tmp_path, capsys):
    first, second = (annotate(true_poses(8), [0.02] * 3, seed) for seed in (1, 2))
    for content in (first, second):
        content["categories"] = [{"id": 1, "name": "bird", "keypoints": list(BIRD.names)}]
    assert files.run(first, second, "--output", tmp_path / "schema.json") == 0
    text = capsys.readouterr().out
    assert "beak: 24 distances are fewer than --min-pairs 30, so sigma stays 0.05." in text
    assert "left_wing: " not in text  # 24 of each side
    found = json.loads((tmp_path / "schema.json").read_text())["sigmas"]
    assert found[0] == 0.05 and found[1] == found[2] == pytest.approx(0.04, rel=0.3)
    assert files.run(first, second, "--min-pairs", "24") == 0
    assert "fewer" not in capsys.readouterr().out


def test_classes_with_different_keypoints(files, tmp_path, capsys):
    first, second = (annotate(true_poses(40), [0.02] * 3, seed) for seed in (1, 2))
    for content in (first, second):
        content["categories"] = [COCO_PERSON.to_coco_category(0, "person"), CATEGORY]
    assert files.run(first, second) == 1
    assert "--category is needed, as person, bird have different keypoints" in capsys.readouterr().err
    assert files.run(first, second, "--category", "cat") == 1
    assert "--category cat is not in" in capsys.readouterr().err
    assert files.run(first, second, "--category", "bird", "--output", tmp_path / "schema.json") == 0
    schema = KeypointSchema.of(read_schema(tmp_path / "schema.json"))
    assert schema.names == BIRD.names and schema.sigmas[0] == pytest.approx(0.04, rel=0.15)


class TestMistakes:
    def test_one_file_twice(self, files, capsys):
        content = annotate(true_poses(20), [0.02] * 3, 1)
        assert files.run(content, content) == 1
        assert "beak is at the same place in both files for all people" in capsys.readouterr().err

    def test_other_images(self, files, capsys):
        content = annotate(true_poses(2), [0.02] * 3, 1)
        others = [{**image, "file_name": f"other-{image['id']}.jpg"} for image in content["images"]]
        assert files.run(content, {**content, "images": others}) == 1
        assert "have no image in common" in capsys.readouterr().err

    def test_no_annotations(self, files, capsys):
        content = annotate(true_poses(2), [0.02] * 3, 1)
        empty = {key: value for key, value in content.items() if key != "annotations"}
        assert files.run(content, empty) == 1
        assert "has no `annotations`" in capsys.readouterr().err

    def test_inputs_are_kept(self, files, tmp_path, capsys):
        content = annotate(true_poses(2), [0.02] * 3, 1)
        assert files.run(content, content, "--output", tmp_path / "first.json") == 1
        assert "would overwrite an input" in capsys.readouterr().err
