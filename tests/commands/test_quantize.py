"""The 8-bit copy of an exported model: what it computes, and mistakes."""

import shutil
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from transformers_detrpose import DETRPoseForPoseEstimation  # noqa: E402
from transformers_detrpose.commands import quantize as quantize_onnx  # noqa: E402
from transformers_detrpose.deployment.benchmarking.backends import Setting, export_onnx  # noqa: E402
from transformers_detrpose.synthetic.pictures import generate_picture  # noqa: E402

DEMONSTRATION_MODEL = Path(quantize_onnx.__file__).parents[1] / "demonstration_model"
SIZE = 192


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    model = DETRPoseForPoseEstimation.from_pretrained(DEMONSTRATION_MODEL, dtype=torch.float32).eval()
    export_onnx(model, Setting("float32", 1, SIZE, torch.device("cpu")), folder)
    shutil.copy(DEMONSTRATION_MODEL / "preprocessor_config.json", folder)
    return folder


def draw(index):
    return generate_picture(0, index, SIZE, max_people=1, min_height=0.6, plain=True, upright=True)[0]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images" / "below"
    folder.mkdir(parents=True)
    for index in range(10):
        draw(index).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def command(exported, images, tmp_path):
    def run(**changes):
        paths = {"onnx": exported, "images": images, "output": tmp_path / "small", **changes}
        return quantize_onnx.main([text for name, path in paths.items() for text in (f"--{name}", str(path))])

    return run


def test_finds_nearly_the_same_poses(command, exported, tmp_path):
    assert command() == 0
    small = tmp_path / "small"
    assert {path.name for path in exported.iterdir()} == {path.name for path in small.iterdir()}
    assert (small / "model.onnx").stat().st_size < 0.5 * (exported / "model.onnx").stat().st_size
    sessions = [onnxruntime.InferenceSession(folder / "model.onnx") for folder in (exported, small)]
    differences = []
    for index in range(10, 20):
        pixels = np.asarray(draw(index), dtype=np.float32).transpose(2, 0, 1)[None] / 255
        results = [session.run(["logits", "pred_keypoints"], {"pixel_values": pixels}) for session in sessions]
        before, after = (keypoints[0, logits[0, :, 1].argmax()] for logits, keypoints in results)
        if results[0][0].max() > 0:  # somebody is there
            differences.append(np.abs(after - before).mean())
    assert len(differences) > 4 and 0 < np.median(differences) < 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"onnx": "missing"}, "not a folder with a model.onnx"),
        ({"images": "missing"}, "has no pictures"),
        ({"output": "."}, "exists already"),
    ],
)
def test_bad_arguments(command, capsys, monkeypatch, tmp_path, changes, message):
    monkeypatch.chdir(tmp_path)
    assert command(**changes) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_picture_that_cannot_be_read_leaves_nothing(command, images, capsys, tmp_path):
    (images / "broken.jpg").write_bytes(b"no picture")
    assert command() == 1
    assert "broken.jpg" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixel_values": onnx.TensorProto.FLOAT16}, "not in float32"),
        ({"pixel_values": onnx.TensorProto.FLOAT, "target_sizes": onnx.TensorProto.INT64}, "pixel_values alone"),
    ],
)
def test_other_graphs_are_refused(command, capsys, tmp_path, inputs, message):
    infos = [onnx.helper.make_tensor_value_info(name, kind, [1]) for name, kind in inputs.items()]
    (tmp_path / "other").mkdir()
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", infos, [])), tmp_path / "other" / "model.onnx")
    assert command(onnx=tmp_path / "other") == 1
    assert message in capsys.readouterr().err
