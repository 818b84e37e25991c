"""The metrics: cases computed by hand, and the libraries called directly on random data.

For several processes see test_evaluate.py.
"""

import json
import math

import faster_coco_eval
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from transformers_detrpose import KeypointSchema, unite_schemas
from transformers_detrpose.evaluation import CocoKeypoints, CrowdPoseKeypoints, coco_records, write_coco_results
from transformers_detrpose.evaluation.precision_recall import precision_recall

POINT = KeypointSchema(names=("tip",), sigmas=(0.05,))
TRIANGLE = np.array([[10.0, 10.0], [50.0, 10.0], [30.0, 60.0]])
SCHEMA = KeypointSchema(names=("left", "right", "top"), sigmas=(0.05, 0.05, 0.1))
FAR = 10_000.0
# Averages over 101 recalls 0, 0.01, ..., 1: half of the people found, all before any mistake.
HALF = 51 / 101


def person(keypoints, visibility=2, image_id=1, **fields):
    """Returns an annotation; keypoints (K, 2) as x, y in pixels."""
    keypoints = np.asarray(keypoints, dtype=float)
    (x1, y1), (x2, y2) = keypoints.min(0), keypoints.max(0)
    triples = np.column_stack([keypoints, np.full(len(keypoints), visibility)])
    return {
        "image_id": image_id,
        "category_id": 1,
        "keypoints": triples.ravel().tolist(),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": 5000.0,
        **fields,
    }


def dataset(*people, num_images=1, categories=(1,), crowd_index=None):
    images = [{"id": image_id, "file_name": f"{image_id}.png"} for image_id in range(1, num_images + 1)]
    for image, index in zip(images, crowd_index or (), strict=False):
        image["crowdIndex"] = index
    return {
        "images": images,
        "categories": [{"id": category_id, "name": str(category_id)} for category_id in categories],
        "annotations": list(people),
    }


def poses(*keypoints, scores=None, labels=None):
    """Returns a prediction; by default the scores fall from 0.9 in steps of 0.01."""
    num_poses = len(keypoints)
    return {
        "scores": torch.tensor(scores or [0.9 - 0.01 * index for index in range(num_poses)]),
        "labels": torch.tensor(labels or [1] * num_poses, dtype=torch.int64),
        "keypoints": torch.tensor(np.array(keypoints), dtype=torch.float32).reshape(num_poses, -1, 2)
        if num_poses
        else torch.zeros(0, 3, 2),
    }


def compute(metric, *predictions):
    """Scores predictions for the images 1, 2, ..."""
    metric.update(range(1, len(predictions) + 1), predictions)
    return metric.compute()


def random_case(num_keypoints, num_images=12, categories=(1,), seed=0):
    """Returns annotations and predictions with all of COCO's cases: crowds, people without labels, images without
    people or poses, all sizes, more than 20 poses, wrong poses, and categories without instances."""
    rng = np.random.default_rng(seed)
    people, predictions = [], []
    for image_id in range(1, num_images + 1):
        found = []
        for _ in range(rng.integers(0, 5) if image_id != 3 else 0):
            size = rng.choice([25, 60, 150])
            keypoints = (rng.uniform(0, 500, 2) + rng.uniform(0, size, (num_keypoints, 2))).astype(np.float32)
            visibility = rng.integers(0, 3, num_keypoints) * (rng.random() > 0.15)
            category_id = int(rng.choice(categories[:-1] or categories))
            area = float(rng.uniform(0.3, 0.8) * size**2)
            fields = {"category_id": category_id, "area": area, "iscrowd": int(rng.random() < 0.1)}
            fields |= {"id": len(people) + 1, "num_keypoints": int((visibility > 0).sum())}
            people.append(person(keypoints, visibility, image_id, **fields))
            for noise in (0.02, 0.1, 0.5):
                found.append((keypoints + rng.normal(0, noise * size, keypoints.shape), category_id))
        for _ in range(20 if image_id % 2 else 0):
            found.append((rng.uniform(0, 500, (num_keypoints, 2)), int(rng.choice(categories))))
        if image_id == 5:
            found = []
        keypoints, labels = zip(*found, strict=True) if found else ((), ())
        predictions.append(
            {
                "scores": rng.random(len(found)).astype(np.float32),
                "labels": np.array(labels, dtype=np.int64),
                "keypoints": np.array(keypoints, dtype=np.float32).reshape(-1, num_keypoints, 2),
            }
        )
    content = dataset(
        *people, num_images=num_images, categories=categories, crowd_index=rng.random(num_images).tolist()
    )
    return content, predictions


def results_of(predictions, path):
    """Writes the predictions for the images 1, 2, ... to a results file without the library."""
    records = [
        {
            "image_id": image_id,
            "category_id": int(label),
            "keypoints": [float(value) for x, y in pose for value in (x, y, 1)],
            "score": float(score),
        }
        for image_id, found in enumerate(predictions, start=1)
        for score, label, pose in zip(found["scores"], found["labels"], found["keypoints"], strict=True)
    ]
    path.write_text(json.dumps(records))
    return str(path)


def run_pycocotools(content, results, sigmas, path):
    path.write_text(json.dumps(content))
    ground_truth = COCO(str(path))
    evaluator = COCOeval(ground_truth, ground_truth.loadRes(results), "keypoints")
    evaluator.params.kpt_oks_sigmas = np.array(sigmas)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats.tolist()


@pytest.mark.parametrize("name", ["keypoint_scores", "keypoint_std"])
def test_confidence_in_keypoints(name):
    metric = CocoKeypoints(dataset(person(TRIANGLE)), SCHEMA)
    found = poses(TRIANGLE, FAR + TRIANGLE, scores=[0.3, 0.6])
    shape = {"keypoint_scores": (2, 3), "keypoint_std": (2, 3, 2)}[name]
    metric.update([1], [{**found, name: np.arange(np.prod(shape)).reshape(shape)}])
    assert metric.gather()[1]["scores"].tolist() == pytest.approx([0.6, 0.3])
    assert metric.gather()[1][name][1].ravel().tolist() == list(range(np.prod(shape[1:])))
    with pytest.raises(ValueError, match=f"image 1: `{name}` must be of shape"):
        metric.update([1], [{**found, name: np.zeros((2, 2))}])


class TestByHand:
    def test_perfect(self):
        small = TRIANGLE + 200
        content = dataset(
            person(TRIANGLE),
            person(small, area=32.0**2 + 1, image_id=2),
            person(FAR + TRIANGLE, area=1e5),
            num_images=2,
        )
        scores = compute(CocoKeypoints(content, SCHEMA), poses(TRIANGLE, FAR + TRIANGLE), poses(small))
        assert list(scores) == ["AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"]
        assert list(scores.values()) == pytest.approx([1] * 10)

    @pytest.mark.parametrize("found", [(), (TRIANGLE + 500,)], ids=["nothing", "all wrong"])
    def test_nobody_found(self, found):
        scores = compute(
            CocoKeypoints(dataset(person(TRIANGLE), person(TRIANGLE + 100, area=1e5)), SCHEMA), poses(*found)
        )
        assert list(scores.values()) == [0] * 10

    def test_nobody_to_be_found(self):
        scores = compute(CocoKeypoints(dataset(), SCHEMA), poses(TRIANGLE))
        assert list(scores.values()) == [-1] * 10

    def test_one_of_two_found_before_a_mistake(self):
        content = dataset(person(TRIANGLE), person(TRIANGLE + 300))
        scores = compute(CocoKeypoints(content, SCHEMA), poses(TRIANGLE, TRIANGLE + 900))
        assert scores["AP"] == pytest.approx(HALF)
        assert scores["AR"] == pytest.approx(0.5)

    def test_mistake_before_the_find(self):
        # Precision is 1/2 when the only person is found, at whatever recall.
        scores = compute(CocoKeypoints(dataset(person(TRIANGLE)), SCHEMA), poses(TRIANGLE + 900, TRIANGLE))
        assert scores["AP"] == pytest.approx(0.5)
        assert scores["AR"] == pytest.approx(1)

    @pytest.mark.parametrize(("metric_class", "area"), [(CocoKeypoints, 5000), (CrowdPoseKeypoints, 0.53 * 40 * 50)])
    def test_keypoint_similarity(self, metric_class, area):
        # exp(-d² / (2 area (2 sigma)²)) = 0.72 passes the thresholds 0.50, 0.55, 0.60, 0.65 and 0.70 of ten.
        # COCO takes the area of the annotation, CrowdPose 0.53 times that of the box.
        distance = math.sqrt(-2 * area * (2 * 0.05) ** 2 * math.log(0.72))
        content = dataset(person([[100, 100]], bbox=[80, 80, 40, 50], area=5000), crowd_index=[0.5])
        scores = compute(metric_class(content, POINT), poses([[100 + distance, 100]]))
        assert scores["AP"] == pytest.approx(0.5)
        assert scores["AP50"] == pytest.approx(1)
        assert scores["AP75"] == 0
        assert scores["AR"] == pytest.approx(0.5)

    def test_image_without_people_counts(self):
        # The best pose is a mistake, in the empty image.
        metric = CocoKeypoints(dataset(person(TRIANGLE), num_images=2), SCHEMA)
        scores = compute(metric, poses(TRIANGLE, scores=[0.5]), poses(TRIANGLE, scores=[0.9]))
        assert scores["AP"] == pytest.approx(0.5)

    def test_image_without_poses_counts(self):
        metric = CocoKeypoints(dataset(person(TRIANGLE), person(TRIANGLE, image_id=2), num_images=2), SCHEMA)
        scores = compute(metric, poses(TRIANGLE), poses())
        assert scores["AP"] == pytest.approx(HALF)

    def test_only_the_given_images_count(self, caplog):
        metric = CocoKeypoints(dataset(person(TRIANGLE), person(TRIANGLE, image_id=2), num_images=2), SCHEMA)
        assert compute(metric, poses(TRIANGLE))["AP"] == pytest.approx(1)
        assert "1 of the 2 images" in caplog.text

    def test_the_best_20_of_each_category_count(self):
        content = dataset(person(TRIANGLE), person(TRIANGLE, category_id=2), categories=(1, 2))
        for num_wrong, expected in ((19, 1), (20, 0.5)):
            labels = [2] + num_wrong * [1] + [1]
            found = poses(TRIANGLE, *[TRIANGLE + 900] * num_wrong, TRIANGLE, labels=labels)
            assert compute(CocoKeypoints(content, SCHEMA), found)["AR"] == pytest.approx(expected)

    def test_poses_of_other_labels_are_left_out(self):
        metric = CocoKeypoints(dataset(person(TRIANGLE)), SCHEMA)
        assert compute(metric, poses(TRIANGLE + 900, TRIANGLE, labels=[0, 1]))["AP"] == pytest.approx(1)

    def test_optional_fields_and_ids_from_zero(self):
        # pycocotools treats a match with the annotation of id 0 as no match.
        sparse = [person(TRIANGLE + shift, id=number) for number, shift in enumerate((0, 300))]
        for annotation in sparse:
            del annotation["area"]
        ignored = [person(TRIANGLE + 600, visibility=0), person(TRIANGLE + 900, iscrowd=1)]
        unlabelled = person(TRIANGLE + 1200)
        del unlabelled["keypoints"]
        content = dataset(*sparse, *ignored, unlabelled)
        scores = compute(CocoKeypoints(content, SCHEMA), poses(TRIANGLE, TRIANGLE + 300))
        assert scores["AP"] == pytest.approx(1)
        assert scores["AR"] == 1

    @pytest.mark.parametrize("metric_class", [CocoKeypoints, CrowdPoseKeypoints])
    @pytest.mark.parametrize("box", [None, [0, 0, 0, 0]])
    def test_missing_boxes_and_areas(self, metric_class, box):
        # As in training: the box is that of the labeled keypoints, 40 x 50 pixels, and the area 0.53 times that.
        distance = math.sqrt(-2 * 0.53 * 40 * 50 * (2 * 0.05) ** 2 * math.log(0.72))
        schema = KeypointSchema(names=("a", "b"), sigmas=(0.05, 0.05))
        corners = np.array([[100, 100], [140, 150]])
        content = dataset(person(corners, bbox=box, area=None), crowd_index=[0.5])
        scores = compute(metric_class(content, schema), poses(corners + [distance, 0]))
        assert scores["AP"] == pytest.approx(0.5)  # 0.50, 0.55, 0.60, 0.65 and 0.70 of ten thresholds

    def test_who_covers_nothing_is_ignored(self):
        # One keypoint, no box and no area: such people are not training targets either.
        nothing = person([[500, 500]], bbox=None, area=None)
        content = dataset(person([[10, 10]]), nothing)
        scores = compute(CocoKeypoints(content, POINT), poses([[10, 10]], [[700, 700]]))
        assert scores["AP"] == pytest.approx(1) and scores["AR"] == 1

    def test_who_has_neither_keypoints_nor_a_box_is_nowhere(self):
        nowhere = person(TRIANGLE * 0, visibility=0, bbox=None, area=None, num_keypoints=3)
        scores = compute(CocoKeypoints(dataset(person(TRIANGLE), nowhere), SCHEMA), poses(TRIANGLE))
        assert scores["AP"] == pytest.approx(1) and scores["AR"] == 1

    def test_categories_without_skeleton_are_left_aside(self):
        box = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
        content = dataset(person(TRIANGLE), box, categories=(1, 2))
        content["categories"][0]["keypoints"] = ["left", "right", "top"]
        assert compute(CocoKeypoints(content, SCHEMA), poses(TRIANGLE))["AP"] == pytest.approx(1)


class TestAgainstLibraries:
    @pytest.mark.parametrize(("num_keypoints", "categories"), [(17, (1,)), (5, (1, 3, 4))])
    def test_coco(self, tmp_path, num_keypoints, categories):
        sigmas = tuple(np.linspace(0.03, 0.1, num_keypoints))
        schema = KeypointSchema(names=range(num_keypoints), sigmas=sigmas)
        content, predictions = random_case(num_keypoints, categories=categories)
        results = results_of(predictions, tmp_path / "results.json")
        expected = run_pycocotools(content, results, sigmas, tmp_path / "annotations.json")
        assert all(0.05 < value < 0.99 for value in expected)  # not a trivial case

        assert list(compute(CocoKeypoints(content, schema), *predictions).values()) == expected

    def test_crowdpose(self, tmp_path):
        content, predictions = random_case(14, num_images=30)
        ground_truth = faster_coco_eval.COCO(json.loads(json.dumps(content)))
        found = ground_truth.loadRes(results_of(predictions, tmp_path / "results.json"))
        sigmas = KeypointSchema.of("crowdpose").sigmas
        evaluator = faster_coco_eval.COCOeval_faster(
            ground_truth, found, "keypoints_crowd", kpt_oks_sigmas=sigmas, use_area=False
        )
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        assert all(0.05 < value < 0.99 for value in evaluator.stats)

        scores = compute(CrowdPoseKeypoints(content, "crowdpose"), *predictions)
        assert list(scores) == "AP AP50 AP75 AR AR50 AR75 AP_easy AP_medium AP_hard".split()
        # The library rounds the last three to four places.
        assert list(scores.values()) == pytest.approx(evaluator.stats.tolist(), abs=5e-5)
        assert list(scores.values())[:6] == evaluator.stats.tolist()[:6]

    def test_crowdpose_is_coco_with_the_area_of_boxes(self, tmp_path):
        content, predictions = random_case(14)
        scores = compute(CrowdPoseKeypoints(content, "crowdpose"), *predictions)
        for annotation in content["annotations"]:
            annotation["area"] = 0.53 * annotation["bbox"][2] * annotation["bbox"][3]
        results = results_of(predictions, tmp_path / "results.json")
        sigmas = KeypointSchema.of("crowdpose").sigmas
        stats = run_pycocotools(content, results, sigmas, tmp_path / "annotations.json")
        assert [scores[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")] == pytest.approx(
            stats[:3] + stats[5:8], abs=1e-12
        )

    def test_written_results_score_the_same(self, tmp_path):
        content, predictions = random_case(3)
        metric = CocoKeypoints(content, SCHEMA)
        scores = compute(metric, *predictions)
        write_coco_results(tmp_path / "results.json", metric.gather())
        stats = run_pycocotools(content, str(tmp_path / "results.json"), SCHEMA.sigmas, tmp_path / "annotations.json")
        assert list(scores.values()) == pytest.approx(stats, abs=1e-3)


class TestCrowdPose:
    def test_split(self):
        crowd_index = [0.0, 0.2, 0.79, 0.8]
        people = [person(TRIANGLE, image_id=image_id) for image_id in (1, 2, 3, 4)]
        content = dataset(*people, num_images=4, crowd_index=crowd_index)
        predictions = [poses(TRIANGLE), poses(TRIANGLE), poses(), poses()]
        scores = compute(CrowdPoseKeypoints(content, SCHEMA), *predictions)
        assert scores["AP"] == pytest.approx(HALF)
        assert [scores[f"AP_{level}"] for level in ("easy", "medium", "hard")] == pytest.approx([1, HALF, 0])

        scores = compute(CrowdPoseKeypoints(content, SCHEMA, crowd_thresholds=(0.3, 0.9)), *predictions)
        assert [scores[f"AP_{level}"] for level in ("easy", "medium", "hard")] == pytest.approx([1, 0, -1])

    def test_category_missing_from_a_split(self):
        # The second category is only in the hard image: it is no part of the average over the easy one.
        people = [person(TRIANGLE), person(TRIANGLE, image_id=2, category_id=2)]
        content = dataset(*people, num_images=2, categories=(1, 2), crowd_index=[0.0, 1.0])
        scores = compute(CrowdPoseKeypoints(content, SCHEMA), poses(TRIANGLE), poses())
        assert [scores[name] for name in ("AP", "AP_easy", "AP_hard")] == pytest.approx([0.5, 1, 0])

    def test_people_without_a_visible_keypoint_are_ignored(self):
        # CrowdPose's `num_keypoints` counts visible keypoints only.
        people = [person(TRIANGLE), person(TRIANGLE + 300, visibility=1, num_keypoints=0)]
        metric = CrowdPoseKeypoints(dataset(*people, crowd_index=[0.5]), SCHEMA)
        assert compute(metric, poses(TRIANGLE))["AP"] == pytest.approx(1)

    def test_needs_crowd_index(self):
        with pytest.raises(ValueError, match="image 2 has no `crowdIndex`"):
            CrowdPoseKeypoints(dataset(num_images=2, crowd_index=[0.5]), SCHEMA)


class TestInterface:
    def test_repeated_images_are_counted_once_and_reset_forgets(self):
        metric = CocoKeypoints(dataset(person(TRIANGLE)), SCHEMA)
        metric.update([1, 1], [poses(TRIANGLE + 900), poses(TRIANGLE)])
        assert metric.compute()["AP"] == metric.compute()["AP"] == pytest.approx(1)
        metric.reset()
        with pytest.raises(ValueError, match="no images"):
            metric.compute()

    def test_reads_files_tensors_and_lists(self, tmp_path):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(dataset(person(TRIANGLE), num_images=2)))
        metric = CocoKeypoints(path, SCHEMA)
        metric.update(torch.tensor([1]), [poses(TRIANGLE)])
        metric.update([2], [{"scores": [], "labels": [], "keypoints": []}])
        assert metric.compute()["AP"] == pytest.approx(1)

    def test_prints_nothing(self, capfd):
        for metric_class in (CocoKeypoints, CrowdPoseKeypoints):
            compute(metric_class(dataset(person(TRIANGLE), crowd_index=[0.5]), SCHEMA), poses(TRIANGLE))
        assert capfd.readouterr() == ("", "")

    def test_does_not_change_its_input(self):
        content = dataset(person(TRIANGLE), crowd_index=[0.5])
        before = json.dumps(content)
        for metric_class in (CocoKeypoints, CrowdPoseKeypoints):
            compute(metric_class(content, SCHEMA), poses(TRIANGLE))
        assert json.dumps(content) == before

    def test_results(self):
        metric = CocoKeypoints(dataset(num_images=2), SCHEMA)
        metric.update([2, 1], [poses(TRIANGLE + 0.123, TRIANGLE, scores=[0.25, 0.5], labels=[1, 7]), poses()])
        predictions = metric.gather()
        assert coco_records(predictions[1], image_id=1) == []
        (record,) = coco_records(predictions[2], decimals=1, image_id=2)
        assert record == {
            "image_id": 2,
            "category_id": 1,
            "keypoints": [10.1, 10.1, 1, 50.1, 10.1, 1, 30.1, 60.1, 1],
            "score": 0.25,
        }

    def test_empty_results_file(self, tmp_path):
        write_coco_results(tmp_path / "results.json", {1: {**poses(), "keypoints": np.zeros((0, 3, 2))}})
        assert json.loads((tmp_path / "results.json").read_text()) == []

    def test_without_annotations_poses_are_only_collected(self):
        content = dataset()
        del content["annotations"]
        metric = CrowdPoseKeypoints(content, SCHEMA)
        metric.update([1], [poses(TRIANGLE)])
        assert len(metric.gather()[1]["scores"]) == 1
        with pytest.raises(ValueError, match="without `annotations`"):
            metric.compute()

    @pytest.mark.parametrize(
        ("image_ids", "prediction", "message"),
        [
            ([2], {}, "image 2 is not one of the 1 `images`"),
            ([1, 1], {}, "2 image ids, but predictions for 1"),
            ([1], {"keypoints": torch.zeros(1, 4, 2)}, r"keypoints` \(n, 3, 2\).*\(1, 4, 2\)"),
            ([1], {"labels": torch.ones(2)}, r"\(1,\), \(2,\)"),
            ([1], {"keypoints": torch.full((1, 3, 2), torch.nan)}, "image 1.*must be finite"),
        ],
    )
    def test_malformed_predictions(self, image_ids, prediction, message):
        with pytest.raises(ValueError, match=message):
            CocoKeypoints(dataset(), SCHEMA).update(image_ids, [{**poses(TRIANGLE), **prediction}])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"annotations": [person(TRIANGLE[:1], id=7)]}, r"annotation 7 of image 1.*9 finite numbers.*\(3 values"),
            ({"annotations": [person(TRIANGLE, bbox=[1, 2, 3], id=7)]}, "annotation 7 of image 1: `bbox`.*3 values"),
            ({"images": [{"file_name": "1.png"}]}, "image number 0: `id` must be an integer, but got None"),
            (
                {"annotations": [person(TRIANGLE, id=7), person(TRIANGLE, id=7)]},
                "`id` must be .* no other",
            ),
            (
                {"annotations": [person(TRIANGLE, image_id=2)]},
                "`image_id` must be the `id` of one .*got 2",
            ),
            # NaN would count as a perfect match.
            ({"annotations": [person(TRIANGLE, area=math.nan)]}, "`area` must be a finite number"),
            ({"annotations": [person(TRIANGLE * math.nan, bbox=None)]}, "`keypoints` must be .* finite"),
            ({"annotations": [person(TRIANGLE, bbox=[0, 0, math.inf, 1])]}, r"`bbox` must be .* \(inf at index 2\)"),
            ({"annotations": [person(TRIANGLE, visibility=7)]}, "visibilities .* 0, 1 or 2, but got .7.0"),
        ],
    )
    def test_malformed_annotations(self, change, message):
        with pytest.raises(ValueError, match=message):
            CocoKeypoints({**dataset(), **change}, SCHEMA)

    @pytest.mark.parametrize(("text", "message"), [("{", "not a JSON file"), ("[1]", "list"), ('{"a": 1}', r"\['a'\]")])
    def test_malformed_files(self, tmp_path, text, message):
        (tmp_path / "annotations.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            CocoKeypoints(tmp_path / "annotations.json", SCHEMA)


class TestDifferentKeypoints:
    """Classes with different keypoints, against pycocotools on the data of each class alone."""

    SCHEMAS = {1: SCHEMA, 4: KeypointSchema(names=("end", "left"), sigmas=(0.07, 0.2)), 5: POINT}
    NAMES = {1: "triangle", 4: "stick", 5: "point"}

    def make_case(self):
        """Returns the schema and the content of a file, predictions, and these for each class alone, by its id."""
        schema = unite_schemas(self.SCHEMAS, self.NAMES)
        alone = {label: random_case(own.num_keypoints, seed=label) for label, own in self.SCHEMAS.items()}
        people, predictions = [], [[] for _ in range(12)]
        rng = np.random.default_rng(0)
        for label, (content, found) in alone.items():
            people += [{**each, "category_id": label, "id": len(people)} for each in content["annotations"]]
            own = list(schema.of_class(label).indices)
            for part, poses_of_class in zip(predictions, found, strict=True):
                keypoints = rng.uniform(0, 500, (len(poses_of_class["scores"]), schema.num_keypoints, 2))
                keypoints[:, own] = poses_of_class["keypoints"]
                labels = np.full(len(keypoints), label)
                part.append({"scores": poses_of_class["scores"], "labels": labels, "keypoints": keypoints})
        people = [{**each, "id": number} for number, each in enumerate(people, start=1)]
        categories = [
            {"id": label, "name": name, **self.SCHEMAS[label].to_coco()} for label, name in self.NAMES.items()
        ]
        content = {"images": alone[1][0]["images"], "categories": categories, "annotations": people}
        return (
            schema,
            content,
            [{key: np.concatenate([x[key] for x in part]) for key in part[0]} for part in predictions],
            alone,
        )

    def test_each_class_has_the_scores_of_pycocotools(self, tmp_path):
        schema, content, predictions, alone = self.make_case()
        metric = CocoKeypoints(content, schema)
        overall = compute(metric, *predictions)
        of_classes = metric.score_classes(metric.gather())
        assert list(of_classes) == ["triangle", "stick", "point"]
        expected = {}
        for label, (single, found) in alone.items():
            results = results_of(found, tmp_path / "results.json")
            expected[label] = run_pycocotools(single, results, self.SCHEMAS[label].sigmas, tmp_path / "truth.json")
            assert list(of_classes[self.NAMES[label]].values()) == pytest.approx(expected[label], abs=1e-6)
            assert 0.05 < expected[label][0] < 0.95  # neither perfect nor hopeless
        for column, score in enumerate(overall.values()):
            defined = [scores[column] for scores in expected.values() if scores[column] > -1]
            assert score == pytest.approx(np.mean(defined), abs=1e-6)

    def test_faster_coco_eval_agrees(self):
        schema, content, predictions, _ = self.make_case()
        metric = CocoKeypoints(content, schema)
        overall = compute(metric, *predictions)
        found = precision_recall(metric, metric.gather())
        assert found.average_precision() == pytest.approx(overall["AP"], abs=1e-6)

    def test_results_have_the_keypoints_of_each_class(self, tmp_path):
        schema, content, predictions, _ = self.make_case()
        metric = CocoKeypoints(content, schema)
        compute(metric, *predictions)
        write_coco_results(tmp_path / "results.json", metric.gather(), schema)
        records = json.loads((tmp_path / "results.json").read_text())
        lengths = {(record["category_id"], len(record["keypoints"])) for record in records}
        assert lengths == {(1, 9), (4, 6), (5, 3)}
        record = next(record for record in records if record["category_id"] == 4)
        poses = metric.gather()[record["image_id"]]
        best = poses["keypoints"][poses["labels"] == 4][0]
        assert record["keypoints"][:2] == pytest.approx(best[3], abs=0.01)  # "end" is the union's fourth keypoint
        assert record["keypoints"][3:5] == pytest.approx(best[0], abs=0.01)  # and "left" its first

    def test_one_category_has_no_scores_of_classes(self):
        metric = CocoKeypoints(dataset(person(TRIANGLE)), SCHEMA)
        compute(metric, poses(TRIANGLE))
        assert metric.score_classes(metric.gather()) == {}

    def test_categories_of_one_name_are_told_apart(self):
        content = dataset(person(TRIANGLE), num_images=1, categories=(1, 2))
        content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
        metric = CocoKeypoints(content, SCHEMA)
        compute(metric, poses(TRIANGLE))
        scores = {name: scores["AP"] for name, scores in metric.score_classes(metric.gather()).items()}
        assert scores == pytest.approx({"cat 1": 1, "cat 2": -1})
