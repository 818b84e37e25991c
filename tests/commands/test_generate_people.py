"""The generator of synthetic people: its geometry, its labels on hand-made cases, and the dataset it writes."""

import json
import math
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from transformers_detrpose.commands import generate_people
from transformers_detrpose.data import read_coco_categories
from transformers_detrpose.keypoint_schemas import COCO_PERSON
from transformers_detrpose.synthetic import dataset as dataset_module
from transformers_detrpose.synthetic import pictures as drawing
from transformers_detrpose.synthetic.figures import build_figure, move_figure, paint_figure, paint_part_map
from transformers_detrpose.synthetic.looks import Look
from transformers_detrpose.synthetic.poses import (
    ARM_RANGES,
    LEG_RANGES,
    Body,
    Limb,
    Pose,
    find_joints,
    keypoint_positions,
    mirrored,
    sample_body,
    sample_pose,
)
from transformers_detrpose.synthetic.scattered import generate_scattered
from transformers_detrpose.synthetic.shapes import Style

INDEX = {name: index for index, name in enumerate(COCO_PERSON.names)}
HEAD = COCO_PERSON.names[:5]
LOOK = Look(skin=(220, 170, 130), hair=(60, 40, 20), shirt=(200, 30, 30), trousers=(30, 30, 160), shoes=(20, 20, 20))
CANVAS = (500, 400)  # height, width; the image has half of that


def joints_of(pose):
    return find_joints(pose, Body()).joints


def place(pose, center=(200, 250), look=LOOK, height=400):
    figure = build_figure(find_joints(pose, Body()), Body(), look, height, Style())
    return drawing.place_figure(move_figure(figure, np.array(center)), CANVAS)


def visibility(person):
    return dict(zip(COCO_PERSON.names, drawing.label_keypoints(person)[:, 2].astype(int).tolist(), strict=True))


def named(names, *values):
    return {name: value for name, value in zip(names, values, strict=True)}


@pytest.fixture(scope="module")
def pictures():
    return [drawing.generate_picture(3, index, 160) for index in range(60)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people") / "new" / "set"
    options = "--train 12 --val 4 --size 96 --seed 5 --workers 1 --max-people 3".split()
    assert generate_people.main(["--output", str(folder), *options]) == 0
    return folder


class TestPoses:
    @pytest.mark.parametrize("turn, expected", [(0, 1), (180, -1)], ids=["front", "back"])
    def test_left_is_on_the_viewers_right_of_who_faces_the_viewer(self, turn, expected):
        joints = joints_of(Pose(turn=turn))
        for left, right in COCO_PERSON.flip_pairs:
            left, right = (joints[COCO_PERSON.names[index]] for index in (left, right))
            assert np.sign(left[0] - right[0]) == expected

    def test_a_turn_of_90_looks_to_the_viewers_left(self):
        joints = joints_of(Pose(turn=90))
        assert joints["nose"][0] < joints["head"][0]
        assert joints["left_shoulder"][2] < joints["neck"][2] < joints["right_shoulder"][2]

    @pytest.mark.parametrize("side, sign", [(0, 1), (1, -1)], ids=["left", "right"])
    def test_angles_of_an_arm(self, side, sign):
        name = ("left", "right")[side]

        def arm(**angles):
            limbs = [Limb(), Limb()]
            limbs[side] = Limb(**angles)
            joints = joints_of(Pose(arms=tuple(limbs)))
            upper = (joints[f"{name}_elbow"] - joints[f"{name}_shoulder"]) / Body().upper_arm
            lower = (joints[f"{name}_wrist"] - joints[f"{name}_elbow"]) / Body().forearm
            return upper.round(6).tolist(), lower.round(6).tolist()

        down, forward, outward, inward = [0, 1, 0], [0, 0, -1], [sign, 0, 0], [-sign, 0, 0]
        assert arm() == (down, down)
        assert arm(flexion=90) == (forward, forward)
        assert arm(abduction=90) == (outward, outward)
        assert arm(bend=90) == (down, forward)
        assert arm(bend=90, rotation=90) == (down, inward)
        assert arm(abduction=90, bend=90, rotation=-90) == (outward, [0, -1, 0])

    def test_angles_of_a_leg(self):
        joints = joints_of(Pose(legs=(Limb(flexion=90, bend=90), Limb(bend=90))))
        thigh, shank = joints["left_knee"] - joints["left_hip"], joints["left_ankle"] - joints["left_knee"]
        np.testing.assert_allclose(thigh, [0, 0, -Body().thigh], atol=1e-9)
        np.testing.assert_allclose(shank, [0, Body().shank, 0], atol=1e-9)
        assert joints["right_ankle"][2] > joints["right_knee"][2]  # backwards

    def test_camera(self):
        assert joints_of(Pose(tilt=20))["head"][2] < 0  # from above the head is nearest
        assert joints_of(Pose(roll=20))["head"][0] > 0  # clockwise
        assert joints_of(Pose(lean=20))["head"][2] < 0

    def test_a_mirror_changes_left_and_right(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            pose, body = sample_pose(rng), sample_body(rng)
            points = keypoint_positions(find_joints(pose, body))
            in_mirror = keypoint_positions(find_joints(mirrored(pose), body))
            np.testing.assert_allclose(in_mirror, points[list(COCO_PERSON.flip_permutation)] * (-1, 1, 1), atol=1e-9)

    def test_samples_are_human(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            pose, body = sample_pose(rng), sample_body(rng)
            for limbs, ranges in ((pose.arms, ARM_RANGES), (pose.legs, LEG_RANGES)):
                for limb in limbs:
                    assert all(low <= getattr(limb, angle) <= high for angle, (low, high) in ranges.items())
            upright = find_joints(Pose(), body).joints
            assert upright["left_ankle"][1] - upright["head"][1] + 0.5 * body.head + 0.04 == pytest.approx(1)
            joints = find_joints(pose, body).joints
            for start, end, length in (("shoulder", "elbow", body.upper_arm), ("knee", "ankle", body.shank)):
                assert np.linalg.norm(joints[f"left_{start}"] - joints[f"left_{end}"]) == pytest.approx(length)


class TestVisibility:
    STANDING = Pose(arms=(Limb(abduction=20),) * 2, legs=(Limb(abduction=8),) * 2)

    def test_all_is_seen_from_the_front(self):
        assert set(visibility(place(self.STANDING)).values()) == {2}

    def test_the_face_is_hidden_from_behind_and_the_rest_is_not(self):
        seen = visibility(place(replace(self.STANDING, turn=180)))
        assert {name: v for name, v in seen.items() if name in HEAD} == named(HEAD, 1, 1, 1, 2, 2)
        assert {v for name, v in seen.items() if name not in HEAD} == {2}

    @pytest.mark.parametrize("turn, near, far", [(90, "left", "right"), (-90, "right", "left")])
    def test_in_profile_the_far_side_is_hidden(self, turn, near, far):
        arms = (Limb(flexion=40, bend=20),) * 2  # away from the hips, but at the elbows behind each other
        seen = visibility(place(Pose(turn=turn, tilt=3, arms=arms)))
        assert seen["nose"] == 2
        for joint in ("eye", "ear", "shoulder", "elbow", "hip"):
            assert (seen[f"{near}_{joint}"], seen[f"{far}_{joint}"]) == (2, 1), joint

    def test_a_hand_behind_the_back(self):
        arm = Limb(flexion=-45, abduction=0, rotation=60, bend=60)
        front, back = (visibility(place(Pose(turn=turn, arms=(arm, Limb(abduction=20))))) for turn in (0, 180))
        assert (front["left_wrist"], front["right_wrist"]) == (1, 2)
        assert back["left_wrist"] == 2

    def test_long_hair_hides_ears(self):
        seen = visibility(place(self.STANDING, look=replace(LOOK, hair_style="long")))
        assert (seen["left_ear"], seen["right_ear"], seen["nose"]) == (1, 1, 2)

    def test_a_skirt_hides_knees_but_not_hips(self):
        seen = visibility(place(self.STANDING, look=replace(LOOK, skirt=1.2)))
        assert [seen[f"left_{joint}"] for joint in ("hip", "knee", "ankle")] == [2, 1, 2]

    def test_what_is_drawn_later_hides(self):
        person = place(self.STANDING)
        waist = person.figure.keypoints[INDEX["left_hip"], 1] - 10
        wall = np.array([[-5, waist], [405, waist], [405, 505], [-5, 505]])
        (hidden,) = drawing.cover([person], drawing.shapes_mask([(wall, (0, 0, 0))], CANVAS))
        seen = visibility(hidden)
        for name, (_, y) in zip(COCO_PERSON.names, person.figure.keypoints, strict=True):
            assert seen[name] == (1 if y >= waist else 2), name
        np.testing.assert_array_equal(drawing.label_keypoints(hidden)[:, :2], drawing.label_keypoints(person)[:, :2])
        assert drawing.annotate(hidden)["area"] == drawing.annotate(person)["area"]

    def test_a_figure_hides_another(self):
        behind, front = place(self.STANDING), place(self.STANDING, center=(205, 250))
        (behind,) = drawing.cover([behind], front.part_map > 0)
        assert 2 not in visibility(behind).values() and set(visibility(front).values()) == {2}
        assert not drawing.is_recognisable(behind)

    def test_outside_the_picture(self):
        person = place(self.STANDING, center=(0, 250))  # the right half is beyond the left border
        labels = drawing.label_keypoints(person)
        for name, (x, y, v) in zip(COCO_PERSON.names, labels, strict=True):
            if name.startswith("right"):
                assert (x, y, v) == (0, 0, 0)
            elif name.startswith("left"):
                assert v == 2 and 0 < x < 200 and 0 < y < 250
        annotation = drawing.annotate(person)
        assert annotation["num_keypoints"] == np.count_nonzero(labels[:, 2])
        assert annotation["bbox"][0] == 0

    def test_keypoints_lie_on_their_parts(self):
        rng = np.random.default_rng(1)
        for _ in range(25):
            person = place(sample_pose(rng), height=300)
            for point, owners in zip(person.figure.keypoints, person.figure.owners, strict=True):
                alone = replace(person.figure, parts=[person.figure.parts[index] for index in owners])
                image = Image.new("L", CANVAS[::-1])
                paint_part_map(ImageDraw.Draw(image), alone)
                x, y = np.floor(point + 0.5).astype(int)
                if 0 <= x < CANVAS[1] and 0 <= y < CANVAS[0]:
                    assert image.getpixel((int(x), int(y))) > 0


class TestBoxAndArea:
    @pytest.mark.parametrize("center", [(200, 250), (10, 60), (390, 480)], ids=["inside", "top left", "bottom right"])
    def test_they_are_those_of_what_is_painted(self, center):
        person = place(Pose(turn=30, arms=(Limb(abduction=100), Limb(flexion=60))), center)
        paintings = []
        for background in ("black", "white"):
            image = Image.new("RGB", CANVAS[::-1], background)
            paint_figure(ImageDraw.Draw(image), person.figure)
            paintings.append(np.asarray(image))
        painted = (paintings[0] == paintings[1]).all(axis=-1)  # where no background is left
        rows, columns = (np.flatnonzero(painted.any(axis=axis)) for axis in (1, 0))
        annotation = drawing.annotate(person)
        assert annotation["area"] == painted.sum() / 4
        x, y, width, height = annotation["bbox"]
        assert (2 * x, 2 * y) == (columns[0], rows[0])
        assert (2 * (x + width), 2 * (y + height)) == (columns[-1] + 1, rows[-1] + 1)

    def test_positions_in_the_picture(self):
        # Canvas pixels 0 and 1 are the image's pixel 0, whose center is 0.5.
        assert drawing.to_picture(np.array([0, 0.5, 1, 399])).tolist() == [0.25, 0.5, 0.75, 199.75]
        assert drawing.to_picture(np.array([399.4999])) < 200


class TestPictures:
    def test_labels_are_consistent(self, pictures):
        for index, (image, annotations) in enumerate(pictures):
            assert image.size == (160, 160) and image.mode == "RGB"
            for annotation in annotations:
                assert (annotation["image_id"], annotation["category_id"], annotation["iscrowd"]) == (index, 1, 0)
                check_annotation(annotation, 160, 160)

    def test_everybody_can_be_seen(self, pictures):
        for _, annotations in pictures:
            for annotation in annotations:
                assert np.count_nonzero(np.array(annotation["keypoints"][2::3]) == 2) >= drawing.LEAST_SEEN_KEYPOINTS

    def test_they_are_varied(self, pictures):
        counts = [len(annotations) for _, annotations in pictures]
        assert {0, 1, 2, 3} <= set(counts) and max(counts) <= 6
        labels = np.array([annotation["keypoints"] for _, annotations in pictures for annotation in annotations])
        shares = [(labels[:, 2::3] == v).mean() for v in range(3)]
        assert min(shares) > 0.01 and shares[2] > 0.5
        seen_faces = labels.reshape(-1, 17, 3)[:, INDEX["nose"], 2] == 2
        assert 0.25 < seen_faces.mean() < 0.75

    def test_the_seed_and_the_index_say_all(self, pictures):
        image, annotations = drawing.generate_picture(3, 7, 160)
        assert np.array_equal(image, pictures[7][0]) and annotations == pictures[7][1]
        assert not np.array_equal(image, drawing.generate_picture(4, 7, 160)[0])
        assert not np.array_equal(image, pictures[8][0])

    def test_any_shape(self):
        image, annotations = drawing.generate_picture(0, 0, (96, 144))
        assert image.size == (144, 96)
        for annotation in annotations:
            check_annotation(annotation, 144, 96)

    def test_nobody(self):
        assert all(drawing.generate_picture(0, index, 64, max_people=0)[1] == [] for index in range(5))

    def test_least_height(self):
        upright = [
            annotation["bbox"][3]
            for index in range(40)
            for annotation in drawing.generate_picture(0, index, 128, max_people=2, min_height=0.9)[1]
        ]
        assert max(upright) > 0.8 * 128 and sum(height > 0.5 * 128 for height in upright) > len(upright) / 2

    def test_plain_pictures_have_one_color_around_the_figures(self):
        for index in range(5):
            picture, annotations = drawing.generate_picture(0, index, 96, max_people=1, plain=True)
            pixels, around = np.asarray(picture), np.ones((96, 96), dtype=bool)
            for x, y, width, height in (annotation["bbox"] for annotation in annotations):
                around[int(y) : int(y + height) + 2, int(x) : int(x + width) + 2] = False
            assert around.sum() > 500 and len(np.unique(pixels[around], axis=0)) == 1

    def test_upright_figures_face_the_viewer_with_their_feet_down(self):
        joints = [joints_of(sample_pose(np.random.default_rng(seed), upright=True)) for seed in range(50)]
        heights = [[each[name][1] for name in ("left_ankle", "hips", "neck", "head")] for each in joints]
        assert all(sorted(ys, reverse=True) == ys for ys in heights)
        assert np.mean([each["left_shoulder"][0] > each["right_shoulder"][0] for each in joints]) > 0.95

    def test_crowd(self):
        assert len(drawing.generate_picture(0, 1, 128, max_people=60)[1]) <= 60


class TestDataset:
    def test_files(self, dataset):
        assert sorted(path.name for path in dataset.iterdir()) == ["train", "train.json", "val", "val.json"]
        assert [path.name for path in dataset.parent.iterdir()] == ["set"]
        for split, count in (("train", 12), ("val", 4)):
            images = json.loads((dataset / f"{split}.json").read_text())["images"]
            assert len(images) == count
            for image in images:
                with Image.open(dataset / split / image["file_name"]) as picture:
                    assert picture.format == "JPEG" and picture.size == (image["width"], image["height"]) == (96, 96)

    def test_the_number_of_workers_and_of_pictures_changes_nothing(self, dataset, tmp_path):
        dataset_module.write_dataset(tmp_path / "a", train=9, val=4, size=96, seed=5, workers=2, max_people=3)
        assert (tmp_path / "a" / "val.json").read_bytes() == (dataset / "val.json").read_bytes()
        pictures = sorted((tmp_path / "a").rglob("*.jpg"))
        assert len(pictures) == 13
        for path in pictures:
            assert path.read_bytes() == (dataset / path.relative_to(tmp_path / "a")).read_bytes()
        few, many = (json.loads((folder / "train.json").read_text()) for folder in (tmp_path / "a", dataset))
        ids = {image["id"] for image in few["images"]}
        assert few["annotations"] == [a for a in many["annotations"] if a["image_id"] in ids]

    def test_pycocotools_reads_it(self, dataset):
        coco_module = pytest.importorskip("pycocotools.coco")
        from pycocotools.cocoeval import COCOeval

        with redirect_stdout(StringIO()):
            coco = coco_module.COCO(str(dataset / "train.json"))
            annotations = coco.loadAnns(coco.getAnnIds())
            results = coco.loadRes([{**annotation, "score": 0.9} for annotation in annotations])
            metric = COCOeval(coco, results, "keypoints")
            metric.evaluate()
            metric.accumulate()
            metric.summarize()
        assert metric.stats[0] == pytest.approx(1)
        assert len({annotation["id"] for annotation in annotations}) == len(annotations) > 0
        assert {annotation["image_id"] for annotation in annotations} <= set(coco.getImgIds())
        for annotation in annotations:
            check_annotation(annotation, 96, 96)

    def test_category(self, dataset):
        schema, id2label = read_coco_categories(dataset / "val.json")
        assert schema == COCO_PERSON and id2label[1] == "person"
        (category,) = json.loads((dataset / "val.json").read_text())["categories"]
        assert [tuple(end - 1 for end in edge) for edge in category["skeleton"]] == list(COCO_PERSON.edges)

    def test_nothing_is_overwritten(self, dataset, capsys):
        before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
        for output in (dataset, dataset / "train.json"):
            assert generate_people.main(["--output", str(output), "--train", "1", "--val", "0"]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert "exists already" in line and str(output) in line
        assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before

    def test_an_empty_folder_is_filled(self, tmp_path):
        (tmp_path / "empty").mkdir()
        dataset_module.write_dataset(tmp_path / "empty", train=0, val=1, size=64)
        assert len(list((tmp_path / "empty" / "val").iterdir())) == 1
        assert json.loads((tmp_path / "empty" / "train.json").read_text())["images"] == []

    @pytest.mark.parametrize("error, code", [(OSError("disk full"), 1), (KeyboardInterrupt(), 130)])
    def test_a_failure_leaves_nothing(self, tmp_path, monkeypatch, error, code):
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(dataset_module, "generate_picture", fail)
        assert generate_people.main(["--output", str(tmp_path / "a"), "--train", "2", "--workers", "1"]) == code
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "option, value", [("--size", "63"), ("--train", "-1"), ("--workers", "0"), ("--seed", "x"), ("--val", "1.5")]
    )
    def test_bad_arguments(self, tmp_path, capsys, option, value):
        with pytest.raises(SystemExit) as exit:
            generate_people.main(["--output", str(tmp_path / "a"), option, value])
        assert exit.value.code == 2
        assert f"argument {option}: {value} is not a whole number of at least" in capsys.readouterr().err

    def test_videos(self, tmp_path, capsys):
        options = "--videos 2 --frames 6 --fps 12 --size 180 --workers 1 --max-people 3".split()
        assert generate_people.main(["--output", str(tmp_path / "frames"), *options]) == 0
        assert "2 videos of 6 frames written to" in capsys.readouterr().out
        folder = tmp_path / "frames"
        assert sorted(path.name for path in folder.iterdir()) == ["00000000", "00000001", "videos.json"]
        content = json.loads((folder / "videos.json").read_text())
        assert [image["frame_id"] for image in content["images"]] == 2 * list(range(6))
        assert {image["vid_id"] for image in content["images"]} == {0, 1}
        assert content["images"][3]["timestamp"] == pytest.approx(3 / 12)
        sizes = {Image.open(folder / image["file_name"]).size for image in content["images"]}
        assert sizes == {(320, 180)}
        image_ids = {image["id"] for image in content["images"]}
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert len(set(ids)) == len(ids) > 6
        for annotation in content["annotations"]:
            assert annotation["image_id"] in image_ids and 0 <= annotation["track_id"] < 3
            # The nose of a small figure may stick out of the pixels that are painted, whose box this is.
            check_annotation(annotation, 320, 180, margin=0.5)
        keys = [(annotation["image_id"], annotation["track_id"]) for annotation in content["annotations"]]
        assert len(set(keys)) == len(keys)

    def test_video_files(self, tmp_path):
        av = pytest.importorskip("av")
        options = "--videos 1 --frames 5 --fps 10 --size 90 --workers 1 --mp4".split()
        assert generate_people.main(["--output", str(tmp_path / "videos"), *options]) == 0
        content = json.loads((tmp_path / "videos" / "videos.json").read_text())
        assert {image["file_name"] for image in content["images"]} == {"00000000.mp4"}
        with av.open(str(tmp_path / "videos" / "00000000.mp4")) as container:
            frames = list(container.decode(video=0))
            assert len(frames) == 5 and (frames[0].width, frames[0].height) == (160, 90)
            assert float(container.streams.video[0].average_rate) == 10

    def test_help_names_defaults(self, capsys):
        with pytest.raises(SystemExit) as exit:
            generate_people.main(["--help"])
        assert exit.value.code == 0
        assert "(default: 320)" in " ".join(capsys.readouterr().out.split())


def check_annotation(annotation, width, height, margin=0):
    """Checks the invariants of all annotations, in pixels; keypoints may be outside the box by a margin."""
    labels = np.reshape(annotation["keypoints"], (17, 3))
    labelled = labels[labels[:, 2] > 0]
    assert set(labels[:, 2]) <= {0, 1, 2}
    assert annotation["num_keypoints"] == len(labelled) > 0
    assert (labels[labels[:, 2] == 0] == 0).all()
    assert (labelled[:, :2] >= 0).all() and (labelled[:, :2] < (width, height)).all()
    x, y, box_width, box_height = annotation["bbox"]
    assert 0 <= x < x + box_width <= width and 0 <= y < y + box_height <= height
    assert (labelled[:, :2] >= np.subtract((x, y), margin)).all()
    assert (labelled[:, :2] <= np.add((x + box_width, y + box_height), margin)).all()
    assert 0 < annotation["area"] <= box_width * box_height


class TestScattered:
    def test_figures_are_whole_and_apart(self):
        image, people = generate_scattered(1, 2, (300, 400), 12, (40, 80))
        assert image.size == (400, 300) and 6 <= len(people) <= 12
        ground = np.asarray(image)[0, 0]
        covered = np.zeros((300, 400), dtype=bool)
        for person in people:
            x, y, width, height = person["bbox"]
            keypoints = np.reshape(person["keypoints"], (17, 3))
            assert (keypoints[:, 2] > 0).all() and 30 < height < 100
            assert (keypoints[:, :2] >= (x, y)).all() and (keypoints[:, :2] <= (x + width, y + height)).all()
            part = covered[int(y) : math.ceil(y + height), int(x) : math.ceil(x + width)]
            assert not part.any()
            part[:] = True
        is_figure = (np.asarray(image) != ground).any(axis=-1)
        assert is_figure.sum() == pytest.approx(sum(person["area"] for person in people), rel=0.2)
        assert not (is_figure & ~covered).any()

    def test_command(self, tmp_path):
        options = "--train 0 --val 1 --size 96 --width 160 --scattered 30 40 --max-people 3 --workers 1".split()
        assert generate_people.main(["--output", str(tmp_path / "out"), *options]) == 0
        (image,) = json.loads((tmp_path / "out" / "val.json").read_text())["images"]
        assert (image["width"], image["height"]) == (160, 96)
