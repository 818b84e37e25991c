"""Annotation on a local Ray cluster."""

import os

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray")

from saved_model import save_tiny_model  # noqa: E402
from transformers_detrpose.annotation.preannotation import read_rows  # noqa: E402
from transformers_detrpose.commands import annotate  # noqa: E402


def test_two_workers_write_what_one_process_writes(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number in range(7):
        Image.fromarray(np.full((40, 30, 3), 30 * number, dtype=np.uint8)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "3.png").write_text("no image")
    options = ["--model", str(model), "--input", str(tmp_path / "images"), "--shard-size", "2", "--threshold", "0"]
    options += ["--device", "cpu"]
    assert annotate.main([*options, "--output", str(tmp_path / "alone")]) == 0
    assert annotate.main([*options, "--output", str(tmp_path / "ray"), "--ray", "--workers", "2"]) == 0
    assert "7 of 7 images" in capsys.readouterr().out.splitlines()[-1]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    alone, shared = list(read_rows(tmp_path / "alone")), list(read_rows(tmp_path / "ray"))
    assert [row["id"] for row in shared] == [f"{number}.png" for number in range(7)]
    assert [row["error"] for row in shared] == [None] * 3 + ["not an image"] + [None] * 3
    for one, two in zip(alone, shared, strict=True):
        for name in ("scores", "keypoints", "boxes") if one["error"] is None else ():
            assert np.array(two[name]) == pytest.approx(np.array(one[name]), abs=1e-3)
