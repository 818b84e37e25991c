"""Tiles of large images: where they lie, and how their poses are merged."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from moving_poses import poses_at
from transformers_detrpose import DETRPoseImageProcessor
from transformers_detrpose.tiles import Tiles, crop, merge_poses, predict_tiles, whole_image

COCO = DETRPoseImageProcessor(keypoint_schema="coco").keypoint_schema


class TestBoxes:
    def test_tiles_of_one_size_by_hand(self):
        """Two rows and three columns: 100 - 50 = 50 is one step of 50 · (1 - 0.2) = 40 and a rest."""
        boxes = Tiles(50, 0.2).boxes((50, 100))
        assert boxes == [(0, 0, 100, 50), (0, 0, 50, 50), (25, 0, 75, 50), (50, 0, 100, 50)]

    def test_sizes_double_up_to_the_whole_image(self):
        boxes = Tiles(640, 0.25).boxes((3000, 4000))
        assert boxes[0] == (0, 0, 4000, 3000)
        sizes = [x2 - x1 for x1, _, x2, _ in boxes[1:]]
        assert {size: sizes.count(size) for size in sizes} == {640: 48, 1280: 12, 2560: 4}

    @pytest.mark.parametrize("size_hw", [(640, 640), (1, 1), (480, 600)])
    def test_an_image_that_fits_into_a_tile_has_none(self, size_hw):
        assert Tiles(640).boxes(size_hw) == [whole_image(size_hw)]

    @pytest.mark.parametrize("overlap", [0, 0.25, 0.9])
    @pytest.mark.parametrize("size_hw", [(641, 640), (333, 1999), (3000, 64)])
    def test_everything_small_is_whole_in_a_tile(self, size_hw, overlap):
        boxes = np.array(Tiles(64, overlap).boxes(size_hw))
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= size_hw[::-1]).all()
        assert len(set(map(tuple, boxes.tolist()))) == len(boxes)
        side = max(1, int(overlap * 64))
        corners = np.random.default_rng(0).integers(0, np.maximum(np.array(size_hw[::-1]) - side, 0) + 1, (200, 2))
        ends = np.minimum(corners + side, size_hw[::-1])
        is_inside = (corners[:, None] >= boxes[1:, :2]) & (ends[:, None] <= boxes[1:, 2:])
        assert is_inside.all(axis=-1).any(axis=-1).all()

    @pytest.mark.parametrize(("options", "message"), [((0,), "`size` must be"), ((64, 0.95), "`overlap` must be")])
    def test_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            Tiles(*options)

    def test_crops_of_all_kinds_of_images_are_the_same(self):
        array = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        tiles = Tiles(40)
        for box, part in zip(tiles.boxes((60, 90)), tiles.crops(tensor), strict=True):
            expected = part.permute(1, 2, 0).numpy()
            assert (crop(array, box) == expected).all()
            assert (np.asarray(crop(Image.fromarray(array), box)) == expected).all()


WHOLE, LEFT, RIGHT = (0, 0, 400, 200), (0, 0, 220, 200), (180, 0, 400, 200)


def in_tile(box, centers, scores):
    """Returns poses at the given places in the image, in pixels of a tile."""
    return poses_at([(x - box[0], y - box[1]) for x, y in centers], scores=scores)


def merged(*tiles):
    return merge_poses([in_tile(*tile) for tile in tiles], [box for box, *_ in tiles], COCO)


class TestMerging:
    def test_poses_are_moved_and_the_best_of_each_person_remains(self):
        """Binary fractions, which float32 holds exactly."""
        poses = merged((WHOLE, [(301, 100)], [0.5]), (LEFT, [(100, 100)], [0.75]), (RIGHT, [(300, 100)], [0.625]))
        assert poses["scores"].tolist() == [0.75, 0.625]
        expected = poses_at([(100, 100), (300, 100)], scores=[0.75, 0.625])
        for name in ("keypoints", "boxes", "labels"):
            assert torch.equal(poses[name], expected[name]), name

    def test_a_person_who_is_cut_by_one_tile_is_taken_from_another(self):
        """At x = 210, the left tile, which ends at 220, shows a part: its pose is not taken though it scores best."""
        half_width = float(poses_at([(0, 0)])["boxes"][0, 2])
        assert half_width > 5
        poses = merged((WHOLE, [], []), (LEFT, [(220 - half_width, 100)], [0.9375]), (RIGHT, [(300, 100)], [0.5]))
        assert poses["scores"].tolist() == [0.5]
        poses = merged((WHOLE, [(220 - half_width, 100)], [0.25]), (LEFT, [(220 - half_width, 100)], [0.9375]))
        assert poses["scores"].tolist() == [0.25]

    def test_borders_of_the_image_cut_nobody(self):
        poses = merged((WHOLE, [], []), (LEFT, [(2, 100)], [0.75]), (RIGHT, [(398, 100)], [0.5]))
        assert poses["scores"].tolist() == [0.75, 0.5]

    def test_people_who_are_close_in_one_tile_remain(self):
        """At a distance at which they would be one person if they were found in two tiles."""
        near = [(100, 100), (107, 100)]
        assert len(merged((WHOLE, near[:1], [0.5]), (LEFT, near[1:], [0.75]))["scores"]) == 1
        assert len(merged((WHOLE, [], []), (LEFT, near, [0.75, 0.5]))["scores"]) == 2
        assert len(merged((WHOLE, near, [0.5, 0.5625]), (LEFT, near, [0.75, 0.625]))["scores"]) == 2

    def test_a_person_found_twice_in_one_tile(self):
        assert len(merged((WHOLE, [], []), (LEFT, [(100, 100), (101, 100)], [0.5, 0.75]))["scores"]) == 1

    def test_nobody(self):
        poses = merged((WHOLE, [], []), (LEFT, [], []), (RIGHT, [], []))
        assert {len(values) for values in poses.values()} == {0}

    def test_without_tiles_nothing_changes(self):
        poses = poses_at([(100, 100), (100, 100)])
        assert merge_poses([poses], [WHOLE], None) is poses

    def test_tiles_need_a_schema(self):
        with pytest.raises(ValueError, match="`keypoint_schema`"):
            merge_poses([poses_at([])] * 2, [WHOLE, LEFT], None)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 100])
def test_each_image_gets_the_poses_of_its_tiles(batch_size):
    """A model that sees one person, in the middle of every crop whose pixels are not black."""
    seen = []

    def model(pixel_values):
        seen.append(len(pixel_values))
        pose = poses_at([(0.5, 0.5)])["keypoints"]
        pose = 0.5 + 0.25 * (pose - pose.mean(dim=1, keepdim=True)) / pose.abs().max()
        logits = torch.where(pixel_values.amax((1, 2, 3)) > 0, 4.0, -9.0)[:, None, None]
        return SimpleNamespace(logits=logits, pred_keypoints=pose.expand(len(pixel_values), 1, -1, -1))

    processor = DETRPoseImageProcessor(keypoint_schema="coco")
    boxes = [[WHOLE, LEFT, RIGHT], [(0, 0, 50, 80)]]
    pixels = torch.tensor([0.0, 1.0, 1.0, 1.0])[:, None, None, None].expand(-1, 3, 8, 8)
    first, second = predict_tiles(model, processor, pixels, boxes, 0.5, batch_size)
    assert sum(seen) == 4 and max(seen) == min(batch_size or 4, 4)
    middles = first["keypoints"].mean(dim=1)[:, 0].sort().values
    assert middles.numpy() == pytest.approx([110, 290], abs=1e-3)
    assert second["keypoints"].mean(dim=1).numpy() == pytest.approx(np.array([[25, 40]]), abs=1e-3)
