"""Quantization of an exported model: outputs, and errors."""

import shutil

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxslim")

import numpy as np  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from transformers_detrpose.commands import quantize as quantize_onnx  # noqa: E402
from transformers_detrpose.deployment import export_onnx  # noqa: E402
from transformers_detrpose.deployment.graph import output_shapes  # noqa: E402
from transformers_detrpose.loading import (  # noqa: E402
    DEMONSTRATION_MODEL,
    load_config,
    load_image_processor,
    load_model,
    load_pose_estimator,
)
from transformers_detrpose.synthetic.pictures import generate_picture  # noqa: E402

SIZE = 192


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    name, folder = str(DEMONSTRATION_MODEL), tmp_path_factory.mktemp("onnx")
    export_onnx(load_model(name), load_image_processor(name), folder)
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
    models = [load_pose_estimator(str(folder)) for folder in (exported, small)]
    differences = []
    for index in range(10, 20):
        pixels = np.asarray(draw(index), dtype=np.float32).transpose(2, 0, 1)[None] / 255
        results = [model(pixels) for model in models]
        before, after = (outputs.pred_keypoints[0, outputs.logits[0, :, 1].argmax()] for outputs in results)
        if results[0].logits.max() > 0:  # there are people
            differences.append(np.abs(after - before).mean())
    assert len(differences) > 4 and 0 < np.median(differences) < 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"onnx": "missing"}, "not a folder with a model.onnx"),
        ({"images": "missing"}, "no such file or folder"),
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


def test_a_folder_without_images(command, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert command(images=tmp_path / "empty") == 1
    assert "has no images (.bmp, " in capsys.readouterr().err


def make_graph(**inputs):
    """Returns a graph with the outputs of the demonstration model, whose inputs have other types or names."""
    infos = [helper.make_tensor_value_info(name, kind, ["batch", 1]) for name, kind in inputs.items()]
    outputs, nodes = [], []
    for name, shape in output_shapes(load_config(str(DEMONSTRATION_MODEL)), "target_sizes" in inputs).items():
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape]))
        value = numpy_helper.from_array(np.zeros((1, *shape), dtype=np.float32))
        nodes.append(helper.make_node("Constant", [], [name], value=value))
    graph = helper.make_graph(nodes, "graph", infos, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixel_values": TensorProto.FLOAT16}, "model.onnx is not in float32"),
        ({"pixel_values": TensorProto.FLOAT, "target_sizes": TensorProto.INT64}, "does not take pixel_values alone"),
        ({"input_ids": TensorProto.FLOAT}, "model.onnx is not an exported DETRPose: it takes input_ids"),
    ],
)
def test_other_graphs_are_refused(command, exported, capsys, tmp_path, inputs, message):
    other = shutil.copytree(exported, tmp_path / "other")
    onnx.save(make_graph(**inputs), other / "model.onnx")
    assert command(onnx=other) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_damaged_graph_is_refused(command, exported, capsys, tmp_path):
    other = shutil.copytree(exported, tmp_path / "other")
    (other / "model.onnx").write_bytes((other / "model.onnx").read_bytes()[:10000])
    assert command(onnx=other) == 1
    error = capsys.readouterr().err
    assert "other/model.onnx" in error and error.count("\n") == 1
