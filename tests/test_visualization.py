"""Drawing: what is drawn where, and that inputs are not modified."""

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image

from transformers_detrpose.keypoint_schemas import COCO_PERSON, KeypointSchema, unite_schemas
from transformers_detrpose.visualization import OUTLINE, PALETTE, draw_poses, to_supervision

STICK = KeypointSchema(names=("head", "hip", "foot"), edges=((0, 1), (1, 2)))
ORANGE, BLUE = (PALETTE.by_idx(index).as_rgb() for index in (0, 1))


def make_result(keypoints, keypoint_scores=None, scores=None, labels=None):
    """Poses (n, K, 2) in pixels, as `post_process_keypoint_detection` returns them."""
    keypoints = torch.tensor(keypoints, dtype=torch.float32)
    num_poses, num_keypoints = keypoints.shape[:2]
    if keypoint_scores is None:
        keypoint_scores = [[0.9] * num_keypoints] * num_poses
    return {
        "scores": torch.tensor(scores or [0.9] * num_poses),
        "labels": torch.tensor(labels or [1] * num_poses),
        "keypoints": keypoints,
        "keypoint_scores": torch.tensor(keypoint_scores).reshape(num_poses, num_keypoints),
        "boxes": torch.cat([keypoints.amin(1), keypoints.amax(1)], dim=1),
    }


def empty_result(num_keypoints):
    return {
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.long),
        "keypoints": torch.zeros(0, num_keypoints, 2),
        "keypoint_scores": torch.zeros(0, num_keypoints),
        "boxes": torch.zeros(0, 4),
    }


def grey_image(height=200, width=100):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def colors_in(image):
    return {tuple(int(value) for value in color) for color in np.unique(image.reshape(-1, 3), axis=0)}


class TestDrawPoses:
    def test_points_and_edges_have_the_colour_of_the_pose(self):
        drawn = draw_poses(grey_image(), make_result([[[50, 20], [50, 100], [80, 180]]]), STICK)
        assert tuple(drawn[20, 50]) == ORANGE
        assert tuple(drawn[180, 80]) == ORANGE
        assert tuple(drawn[60, 50]) == ORANGE  # halfway along the first edge
        assert tuple(drawn[140, 65]) == ORANGE  # halfway along the second
        assert tuple(drawn[100, 20]) == (128, 128, 128)  # and nothing far from them
        assert colors_in(drawn) == {(128, 128, 128), ORANGE, OUTLINE.as_rgb()}

    def test_keypoints_that_no_edge_joins_are_not_joined(self):
        # supervision counts keypoints from 1: without conversion, these edges would connect other keypoints
        schema = KeypointSchema(names=("a", "b", "c"), edges=((1, 2),))
        drawn = draw_poses(grey_image(), make_result([[[20, 20], [20, 180], [80, 180]]]), schema)
        assert tuple(drawn[100, 20]) == (128, 128, 128)
        assert tuple(drawn[180, 50]) == ORANGE

    def test_input_is_not_edited(self):
        image = grey_image()
        picture = Image.fromarray(image)
        result = make_result([[[50, 20], [50, 100], [80, 180]]])
        copies = {key: value.clone() for key, value in result.items()}
        draw_poses(image, result, STICK, {1: "person"})
        draw_poses(picture, result, STICK, {1: "person"})
        assert (image == 128).all()
        assert (np.asarray(picture) == 128).all()
        assert all(torch.equal(result[key], copies[key]) for key in result)

    def test_image_and_array_give_the_same(self):
        result = make_result([[[50, 20], [50, 100], [80, 180]]])
        arrays = {key: value.numpy() for key, value in result.items()}
        from_array = draw_poses(grey_image(), arrays, STICK, {1: "person"})
        from_picture = draw_poses(Image.fromarray(grey_image()), result, STICK, {1: "person"})
        assert isinstance(from_array, np.ndarray) and isinstance(from_picture, Image.Image)
        assert (from_array == np.asarray(from_picture)).all()

    def test_half_precision(self):
        result = make_result([[[50, 20], [50, 100], [80, 180]]])
        half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in result.items()}
        assert tuple(draw_poses(grey_image(), half, STICK)[20, 50]) == ORANGE

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
    def test_other_modes_become_rgb(self, mode):
        drawn = draw_poses(Image.new(mode, (100, 200)), make_result([[[50, 20], [50, 100], [80, 180]]]), STICK)
        assert drawn.mode == "RGB" and drawn.size == (100, 200)
        assert drawn.getpixel((50, 20)) == ORANGE

    def test_unsure_keypoints_and_their_edges_are_left_out(self):
        result = make_result([[[50, 20], [50, 100], [80, 180]]], keypoint_scores=[[0.9, 0.9, 0.1]])
        drawn = draw_poses(grey_image(), result, STICK, keypoint_threshold=0.5)
        assert tuple(drawn[60, 50]) == ORANGE
        assert (drawn[115:] == 128).all()

    def test_pose_without_sure_keypoints_is_left_out(self):
        result = make_result([[[50, 20], [50, 100], [80, 180]]], keypoint_scores=[[0.1, 0.1, 0.1]])
        assert (draw_poses(grey_image(), result, STICK, keypoint_threshold=0.5) == 128).all()

    @pytest.mark.parametrize("id2label", [None, {1: "person"}])
    def test_no_poses_give_an_unchanged_copy(self, id2label):
        image = grey_image()
        drawn = draw_poses(image, empty_result(17), COCO_PERSON, id2label)
        assert (drawn == image).all() and not np.shares_memory(drawn, image)

    @pytest.mark.parametrize("num_keypoints", [1, 5, 17, 133])
    def test_schema_without_edges_draws_points_alone(self, num_keypoints):
        # supervision would guess the edges of 17 and 133 keypoints
        schema = KeypointSchema(names=tuple(map(str, range(num_keypoints))))
        keypoints = np.stack([np.full(num_keypoints, 50), np.linspace(10, 190, num_keypoints)], axis=1)
        drawn = draw_poses(grey_image(), make_result([keypoints.tolist()]), schema)
        assert tuple(drawn[10, 50]) == ORANGE
        if num_keypoints == 5:
            assert tuple(drawn[77, 50]) == (128, 128, 128)  # halfway between the second and the third

    def test_each_pose_has_its_colour_and_the_best_is_on_top(self):
        upright, across = [[50, 20], [50, 100], [50, 180]], [[10, 60], [90, 60], [90, 120]]
        drawn = draw_poses(grey_image(), make_result([upright, across]), STICK)
        assert tuple(drawn[120, 50]) == ORANGE and tuple(drawn[60, 20]) == BLUE
        assert tuple(drawn[60, 50]) == ORANGE  # where they cross

    def test_colours_can_be_chosen(self):
        result = make_result([[[50, 20], [50, 100], [80, 180]]])
        assert tuple(draw_poses(grey_image(), result, STICK, color_indices=[1])[20, 50]) == BLUE

    def test_colors_of_tracks(self):
        """The color of a person is that of the number; who belongs to no track is gray."""
        result = make_result([[[20, 20], [20, 100], [20, 180]], [[80, 20], [80, 100], [80, 180]]])
        drawn = draw_poses(grey_image(), {**result, "track_id": torch.tensor([1, -1])}, STICK)
        assert tuple(drawn[20, 20]) == BLUE
        assert tuple(drawn[20, 80]) == sv.Color.GREY.as_rgb() != ORANGE

    def test_numbers_of_tracks_are_written(self):
        result = make_result([[[50, 60], [50, 100], [80, 180]]])
        plain, with_number, without = (
            draw_poses(grey_image(), {**result, **track}, STICK, {1: "a"}, color_indices=[1])
            for track in ({}, {"track_id": torch.tensor([123])}, {"track_id": torch.tensor([-1])})
        )
        assert (with_number != plain).any()
        assert (without == plain).all()

    def test_labels_are_drawn_when_names_are_given(self):
        result = make_result([[[50, 60], [50, 100], [80, 180]]])
        plain, labelled = draw_poses(grey_image(), result, STICK), draw_poses(grey_image(), result, STICK, {1: "p"})
        changed = (plain != labelled).any(axis=-1)
        assert changed.any() and not changed[75:].any()  # above the pose, whose box begins at y = 60

    def test_lines_grow_with_the_image(self):
        def width_of_line(scale):
            keypoints = [[[50 * scale, 20 * scale], [50 * scale, 180 * scale], [50 * scale, 181 * scale]]]
            drawn = draw_poses(grey_image(200 * scale, 100 * scale), make_result(keypoints), STICK)
            return (drawn[100 * scale] == ORANGE).all(axis=-1).sum()

        assert 3 * width_of_line(2) < width_of_line(20)

    def test_small_poses_have_finer_lines(self):
        image = grey_image(2000, 2000)
        small = draw_poses(image, make_result([[[100, 100], [100, 140], [100, 180]]]), STICK)
        large = draw_poses(image, make_result([[[100, 100], [100, 1000], [100, 1900]]]), STICK)
        assert (small[120] != 128).sum() < (large[500] != 128).sum()

    @pytest.mark.parametrize(
        "keypoints",
        [
            [[-1000, -1000], [-900, -1000], [-900, -900]],  # outside
            [[-30, 50], [130, 50], [50, 300]],  # across the borders
            [[1e20, 50], [50, -1e20], [50, 100]],  # beyond 32-bit integers
            [[np.nan, 50], [50, np.nan], [50, 100]],  # not finite
            [[np.inf, 50], [50, -np.inf], [50, 100]],
            [[0, 0], [50, 0], [0, 50]],  # the corner
            [[50, 50], [50, 50], [50, 50]],  # all in one place
        ],
    )
    def test_unusual_coordinates(self, keypoints):
        drawn = draw_poses(grey_image(), make_result([keypoints]), STICK, {1: "person"})
        assert drawn.shape == (200, 100, 3)

    @pytest.mark.parametrize(
        "image", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20, 3))]
    )
    def test_wrong_array(self, image):
        with pytest.raises(ValueError, match="RGB array of shape"):
            draw_poses(image, empty_result(3), STICK)

    def test_wrong_schema(self):
        with pytest.raises(ValueError, match="`schema` has 17 keypoints, but the poses of `result` have 3"):
            draw_poses(grey_image(), make_result([[[50, 20], [50, 100], [80, 180]]]), COCO_PERSON)


class TestEllipses:
    """One keypoint at (50, 50), with a standard deviation of 10 pixels in x and 5 in y."""

    POINT = KeypointSchema(names=("point",))

    def draw(self, deviations=(10.0, 5.0), radii=(2.0,), **options):
        result = {**make_result([[[50, 50]]]), "keypoint_std": torch.tensor([[deviations]])}
        return draw_poses(grey_image(100, 100), result, self.POINT, ellipse_radii=radii, thickness=2, **options)

    def test_extent(self):
        is_drawn = (self.draw() != 128).any(axis=-1)
        assert is_drawn[50, 50 + 18] and is_drawn[50, 50 - 18] and not is_drawn[50, 50 + 22]
        assert is_drawn[50 + 8, 50] and is_drawn[50 - 8, 50] and not is_drawn[50 + 12, 50]

    def test_the_inner_ellipse_is_denser(self):
        drawn = self.draw(radii=(1.0, 2.0)).astype(int)
        inner, outer = (abs(drawn[50, 50 + x] - 128).sum() for x in (7, 15))
        assert inner > outer + 10 > 10

    def test_none_by_default(self):
        result = {**make_result([[[50, 50]]]), "keypoint_std": torch.tensor([[[10.0, 5.0]]])}
        is_drawn = (draw_poses(grey_image(100, 100), result, self.POINT, thickness=2) != 128).any(axis=-1)
        assert not is_drawn[50, 50 + 15]

    def test_hidden_keypoints_have_none(self):
        assert (self.draw(keypoint_threshold=0.95) == 128).all()

    def test_huge(self):
        assert (self.draw(deviations=(1e7, 1e7)) != 128).any(axis=-1).all()

    def test_no_deviations(self):
        with pytest.raises(ValueError, match="`ellipse_radii` need the `keypoint_std`"):
            draw_poses(grey_image(), make_result([[[50, 50]]]), self.POINT, ellipse_radii=(1.0,))


class TestToSupervision:
    def test_covariance(self):
        result = make_result([[[1, 2], [3, 4]]]) | {"keypoint_std": torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])}
        poses = to_supervision(result)
        assert poses.data["covariance"].tolist() == [[[[1, 0], [0, 4]], [[9, 0], [0, 0]]]]
        assert poses[0].data["covariance"].shape == (1, 2, 2, 2)
        assert "covariance" not in to_supervision(make_result([[[1, 2], [3, 4]]])).data

    def test_everything_is_carried_over(self):
        result = make_result([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], [[0.9, 0.2], [0.4, 0.6]], [0.8, 0.7], [1, 0])
        poses = to_supervision(result, keypoint_threshold=0.5, id2label={0: "dog", 1: "person"})
        assert isinstance(poses, sv.KeyPoints)
        assert poses.xy.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
        assert poses.class_id.tolist() == [1, 0]
        assert poses.detection_confidence == pytest.approx([0.8, 0.7])
        assert poses.keypoint_confidence == pytest.approx(np.array([[0.9, 0.2], [0.4, 0.6]]))
        assert poses.visible.tolist() == [[True, False], [False, True]]
        assert poses.data["xyxy"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert poses.data["class_name"].tolist() == ["person", "dog"]

    def test_boxes_for_a_tracker(self):
        detections = to_supervision(make_result([[[1, 2], [3, 4]]])).as_detections()
        assert detections.xyxy.tolist() == [[1, 2, 3, 4]]
        assert detections.confidence == pytest.approx([0.9])

    def test_no_poses(self):
        poses = to_supervision(empty_result(17), id2label={1: "person"})
        assert len(poses) == 0 and len(poses.as_detections()) == 0


class TestDifferentKeypoints:
    SCHEMAS = {
        1: STICK,
        2: KeypointSchema(names=("tip", "head", "foot"), edges=((1, 2),)),
        3: KeypointSchema(names=("tip",)),
    }
    SCHEMA = unite_schemas(SCHEMAS, {1: "stick", 2: "arrow", 3: "tip"})  # head, hip, foot, tip

    def test_each_pose_has_the_edges_of_its_class(self):
        keypoints = [[50, 20], [90, 100], [50, 180], [20, 60]]
        stick, arrow = (draw_poses(grey_image(), make_result([keypoints], labels=[x]), self.SCHEMA) for x in (1, 2))
        assert tuple(stick[60, 70]) == ORANGE and tuple(stick[140, 70]) == ORANGE  # from head to hip to foot
        assert tuple(stick[100, 50]) == tuple(stick[60, 20]) == (128, 128, 128)  # neither head to foot nor the tip
        assert tuple(arrow[100, 50]) == tuple(arrow[60, 20]) == ORANGE
        assert tuple(arrow[100, 90]) == (128, 128, 128)
        alone = draw_poses(grey_image(), make_result([[[20, 60], [50, 20], [50, 180]]], labels=[2]), self.SCHEMAS[2])
        result = make_result([keypoints], labels=[2])
        result["boxes"] = torch.tensor([[20.0, 20, 50, 180]])
        assert np.array_equal(draw_poses(grey_image(), result, self.SCHEMA), alone)

    def test_single_keypoint(self):
        drawn = draw_poses(grey_image(), make_result([[[20, 60]] * 4], labels=[3]), self.SCHEMA)
        assert tuple(drawn[60, 20]) == ORANGE and (drawn[100:] == 128).all()

    def test_what_a_class_lacks_is_not_visible(self):
        result = make_result([[[1, 2], [3, 4], [5, 6], [7, 8]]] * 3, labels=[1, 2, 3])
        visible = to_supervision(result, schema=self.SCHEMA).visible
        assert visible.tolist() == [[True, True, True, False], [True, False, True, True], [False, False, False, True]]


class TestVisibility:
    """The head is visible, the hip occluded and the foot absent."""

    def result(self):
        result = make_result([[[50, 20], [50, 100], [50, 180]]])
        return {**result, "keypoint_visibility": torch.tensor([[2, 1, 0]])}

    def test_occluded_joints_are_hollow_and_absent_ones_not_drawn(self):
        drawn = draw_poses(grey_image(), self.result(), STICK, thickness=5)
        assert tuple(drawn[20, 50]) == ORANGE
        assert tuple(drawn[100, 50]) == OUTLINE.as_rgb()
        assert ORANGE in colors_in(drawn[95:106, 40:47])  # the ring around it
        assert colors_in(drawn[120:]) == {(128, 128, 128)}  # neither the foot nor the edge to it

    def test_supervision(self):
        poses = to_supervision(self.result())
        assert poses.data["visibility"].tolist() == [[2, 1, 0]]
        assert poses.visible.tolist() == [[True, True, False]]
        assert "visibility" not in to_supervision(make_result([[[50, 20], [50, 100], [50, 180]]])).data
