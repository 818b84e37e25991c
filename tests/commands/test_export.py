"""`detrpose export onnx`, and mistakes in its arguments."""

import pytest
import torch

from saved_model import SIZE, save_tiny_model

for name in ("onnx", "onnxruntime", "onnxslim"):
    pytest.importorskip(name, reason=f"{name} is missing")

from transformers_detrpose.commands import export  # noqa: E402
from transformers_detrpose.deployment import ORTDETRPoseForPoseEstimation  # noqa: E402
from transformers_detrpose.loading import load_image_processor, load_pose_estimator  # noqa: E402


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def command(model_dir, tmp_path):
    """Runs the command, and returns its exit code and the folder."""

    def run(*options, model=model_dir):
        output = tmp_path / "out"
        return export.main(["onnx", "--model", str(model), *map(str, options), str(output)]), output

    return run


def test_export(command, model_dir, capfd):
    code, output = command()
    assert code == 0
    assert load_image_processor(str(output)).size == load_image_processor(str(model_dir)).size
    pixel_values = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (load_pose_estimator(str(name))(pixel_values) for name in (output, model_dir))
    torch.testing.assert_close(found.pred_keypoints, expected.pred_keypoints, atol=1e-4, rtol=0)
    # Messages of PyTorch's exporter and onnxslim are suppressed.
    printed = "".join(capfd.readouterr())
    assert "model.onnx agrees with PyTorch" in printed or not printed


def test_options(command):
    options = ["--variant", "poses+tensorrt", "--dtype", "fp16", "--height", 32, "--width", 96, "--opset", 17]
    code, output = command(*options)
    model = ORTDETRPoseForPoseEstimation.from_pretrained(output)
    assert code == 0 and model.dtype == torch.float16
    assert model.input_shapes["pixel_values"][1:] == [3, 32, 96] and model.has_poses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "fast"], "--variant must be one of default, tensorrt, any-size, poses, or several"),
        (["--height", "100"], "height and width must be multiples of 32, but got 100 x 64"),
        (["--device", "teapot"], "cannot use --device teapot"),
    ],
)
def test_mistakes_are_told_in_one_line(command, capsys, tmp_path, options, message):
    assert command(*options)[0] == 1
    error = capsys.readouterr().err
    assert error.startswith("detrpose export: error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["nowhere", "bert"])
def test_other_models_are_refused(command, capsys, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    if model == "bert":
        (tmp_path / "bert").mkdir()
        (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    code, output = command(model=model)
    assert code == 1 and not output.exists()
    messages = {"nowhere": "there is no model nowhere", "bert": "bert is a bert model, not a detrpose model"}
    assert messages[model] in capsys.readouterr().err


def test_an_existing_folder_is_kept(command, capsys, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    assert command()[0] == 1
    assert "out exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("options", [["--dtype", "bf16"], ["--opset", "11"], ["--height", "0"]])
def test_wrong_arguments(command, options):
    with pytest.raises(SystemExit) as caught:
        command(*options)
    assert caught.value.code == 2
