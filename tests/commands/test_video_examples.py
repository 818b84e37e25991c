"""The example scripts for videos, with a model that finds people by their color."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

from colored_people import SIZE, ColorModel, save_video, walk
from transformers_detrpose import COCO_PERSON, DETRPoseImageProcessor, KeypointSchema
from transformers_detrpose.commands.command_line import CommandError
from transformers_detrpose.prediction.sample_video import FPS, SIZE_HW, open_frames

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name, monkeypatch):
    """Imports an example, with a pipeline that has the model of colors whatever model it asks for."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    size = {"height": SIZE, "width": SIZE}
    processor = DETRPoseImageProcessor(size=size, keypoint_schema=ColorModel.config.keypoint_schema)
    make = lambda task, model: pipeline(task, model=ColorModel(), image_processor=processor, device="cpu")  # noqa: E731
    monkeypatch.setattr(module, "pipeline", make)
    return module


@pytest.fixture
def video(tmp_path):
    """Two people cross the middle in opposite directions, stay for a while and come back."""
    there = walk(44, step=1)
    return save_video(tmp_path / "a.mp4", [*there, *there[-1:] * 10, *reversed(there)], fps=30)


def test_crossings_are_counted(monkeypatch, video, capsys):
    example = load("count_line_crossings", monkeypatch)
    assert example.main(["--input", str(video)]) == 0
    *crossings, total = capsys.readouterr().out.splitlines()
    assert total == "2 in, 2 out"
    assert len(crossings) == 4
    numbers = [line.split()[3] for line in crossings]
    assert len(set(numbers)) == 2
    assert sorted(numbers[:2]) == sorted(numbers[2:])


def test_a_line_that_nobody_crosses(monkeypatch, video, capsys):
    example = load("count_line_crossings", monkeypatch)
    assert example.main(["--input", str(video), "--line", "0", "1", "1", "1"]) == 0
    assert capsys.readouterr().out == "0 in, 0 out\n"


def test_an_angle_is_plotted(monkeypatch, video, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    example = load("plot_joint_angle", monkeypatch)
    output = tmp_path / "out" / "knee.png"
    assert example.main(["--input", str(video), "--output", str(output)]) == 0
    assert "left_knee of 2 people" in capsys.readouterr().out
    assert Image.open(output).width > 500


@pytest.mark.parametrize(
    ("points", "degrees"),
    [([(0, 0), (1, 0), (0, 5)], 90), ([(0, 0), (1, 0), (-3, 0)], 180), ([(2, 2), (3, 3), (4, 4)], 0)],
)
def test_angles(monkeypatch, points, degrees):
    pytest.importorskip("matplotlib")
    example = load("plot_joint_angle", monkeypatch)
    keypoints = [{"x": x, "y": y} for x, y in points]
    assert example.measure_angle(keypoints, 0, 1, 2) == pytest.approx(degrees)


def test_joints_have_two_neighbors(monkeypatch):
    pytest.importorskip("matplotlib")
    example = load("plot_joint_angle", monkeypatch)
    names = COCO_PERSON.names
    knee, *others = example.find_bones(COCO_PERSON, "left_knee")
    assert names[knee] == "left_knee"
    assert {names[index] for index in others} == {"left_hip", "left_ankle"}
    with pytest.raises(
        CommandError, match="--joint left_wrist is not a keypoint between two others, as are .*left_elbow"
    ):
        example.find_bones(COCO_PERSON, "left_wrist")
    with pytest.raises(CommandError, match="as are none"):
        example.find_bones(KeypointSchema(names=("a",)), "a")


@pytest.mark.parametrize("name", ["count_line_crossings", "plot_joint_angle"])
def test_unreadable(monkeypatch, tmp_path, capsys, name):
    pytest.importorskip("matplotlib")
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    monkeypatch.chdir(tmp_path)
    assert load(name, monkeypatch).main(["--input", "a.mp4"]) == 1
    error = capsys.readouterr().err
    assert error == f"{name}.py: error: cannot read video a.mp4: Invalid data found when processing input\n"


def test_the_generated_video():
    with open_frames(None) as (fps, size_hw, frames):
        frame = next(frames)
        assert (fps, size_hw, frame.size) == (FPS, SIZE_HW, SIZE_HW[::-1])
