"""Fixtures of the tests of data."""

import numpy as np
import pytest

from drawn_people import HALF, Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture(scope="session")
def people_folder(tmp_path_factory):
    """Eight images of different sizes, one person in each but the last, which is empty."""
    folder = Folder(tmp_path_factory.mktemp("people"))
    rng = np.random.default_rng(0)
    for index in range(7):
        width, height = (int(length) for length in rng.integers(70, 160, 2))
        # In three columns, so that squares do not touch.
        xs = rng.permutation([HALF, width // 2, width - 1 - HALF])
        ys = rng.integers(HALF, height - HALF, 3)
        keypoints = [[int(x), int(y), int(v)] for x, y, v in zip(xs, ys, (2, 1, 2), strict=True)]
        folder.add_person((width, height), keypoints, category_id=1, area=100.0 + index)
    folder.add_image((90, 60))
    return folder
