"""The benchmark command on a tiny model: backends, what is written, what is skipped, and mistakes."""

import json

import pytest
import torch
from PIL import Image

from saved_model import SIZE, save_tiny_model
from transformers_detrpose import DETRPoseForPoseEstimation
from transformers_detrpose.commands import benchmark
from transformers_detrpose.deployment.benchmarking.backends import (
    BACKENDS,
    Setting,
    Unavailable,
    cuda_graph,
    onnx_runtime,
    openvino,
)
from transformers_detrpose.deployment.benchmarking.benchmark import Benchmark
from transformers_detrpose.deployment.benchmarking.measuring import (
    Laps,
    Timing,
    describe_machine,
    format_table,
    time_runs,
)
from transformers_detrpose.loading import SAMPLE_PICTURE, load_image_processor, load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(model_dir):
    return DETRPoseForPoseEstimation.from_pretrained(model_dir).eval()


@pytest.fixture
def command(model_dir, device):
    """Runs the command with the tiny model, briefly."""

    def run(*options):
        given = ["--model", model_dir, "--device", device, "--rounds", 3, "--runs", 1, "--pause", 0, *options]
        return benchmark.main([str(option) for option in given])

    return run


@pytest.mark.parametrize("name", ["pytorch", "fused", "onnxruntime", "openvino"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_backends_compute_what_the_model_computes(model, name, batch_size):
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.rand(batch_size, 3, SIZE, SIZE, generator=generator)
    with torch.inference_mode():
        expected = model(pixel_values)
        try:
            outputs = BACKENDS[name](model, Setting("float32", batch_size, SIZE, CPU))(pixel_values)
        except Unavailable as error:
            pytest.skip(str(error))
    for key in ("logits", "pred_keypoints", "pred_keypoint_std"):
        torch.testing.assert_close(outputs[key], expected[key], rtol=1e-3, atol=1e-4)


def test_half_precision_in_onnx_runtime(model):
    pytest.importorskip("onnxruntime")
    pixel_values = torch.rand(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        outputs = onnx_runtime(model, Setting("float16", 1, SIZE, CPU))(pixel_values.half())
    assert outputs.pred_keypoints.dtype == torch.float32 and outputs.pred_keypoints.isfinite().all()


@pytest.mark.parametrize("name", ["cudagraph", "onnxruntime-tensorrt", "tensorrt"])
def test_backends_that_need_a_gpu(model, name):
    with pytest.raises(Unavailable, match="needs a CUDA device"):
        BACKENDS[name](model, Setting("float32", 1, SIZE, CPU))


def test_reasons_why_backends_are_unavailable(model, monkeypatch):
    pytest.importorskip("onnxruntime")
    with pytest.raises(Unavailable, match="float32 and float16 only"):
        onnx_runtime(model, Setting("bfloat16", 1, SIZE, CPU))
    with pytest.raises(Unavailable, match="give --device cpu"):
        openvino(model, Setting("float32", 1, SIZE, torch.device("cuda")))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(Unavailable, match="has no CUDAExecutionProvider, only CPUExecutionProvider"):
        onnx_runtime(model, Setting("float32", 1, SIZE, torch.device("cuda")))
    with pytest.raises(Unavailable, match="needs a CUDA device"):
        cuda_graph(model, Setting("float32", 1, SIZE, CPU))


def test_what_is_written(command, tmp_path, capsys):
    options = ["--backends", "fused", "tensorrt", "--batch-sizes", 1, 2, "--output", tmp_path / "out"]
    assert command(*options) == 0
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert content["size"] == SIZE and content["parameters"] > 1000 and content["operations_per_image"] > 1000
    assert content["machine"]["versions"]["torch"] == torch.__version__
    first, skipped, second, also_skipped = content["rows"]
    assert (first["backend"], first["batch_size"], second["batch_size"]) == ("fused", 1, 2)
    assert set(first["model"]) == {"median", "low", "high", "runs"} and first["model"]["runs"] == 3
    assert list(first["parts"]) == ["decode", "prepare", "model", "post_process"]
    assert first["end_to_end"]["median"] >= max(part["low"] for part in first["parts"].values())
    assert second["images_per_second"] == pytest.approx(2000 / second["model"]["median"], rel=1e-3)
    assert skipped["skipped"] == also_skipped["skipped"] == "needs a CUDA device"
    printed = capsys.readouterr().out
    assert "| fused   | float32   | 2 " in printed and "skipped: tensorrt float32, batch 1: needs a CUDA" in printed


def test_plot(command, tmp_path):
    pytest.importorskip("matplotlib")
    assert command("--backends", "fused", "--output", tmp_path) == 0
    assert Image.open(tmp_path / "benchmark.png").width > 500


def test_without_matplotlib(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert command("--backends", "fused", "--output", tmp_path) == 0
    assert "no plot: matplotlib is not installed" in capsys.readouterr().err


def test_a_backend_that_fails_does_not_end_the_others(command, capsys, monkeypatch):
    def broken(model, setting):
        raise RuntimeError("out of luck\nat line 3")

    monkeypatch.setitem(BACKENDS, "pytorch", broken)
    assert command("--backends", "pytorch", "fused") == 0
    printed = capsys.readouterr().out
    assert "skipped: pytorch float32, batch 1: out of luck\n" in printed and "| fused " in printed


@pytest.fixture
def job(model_dir):
    model, processor = load_model(str(model_dir)), load_image_processor(str(model_dir))
    return Benchmark(model, processor, [SAMPLE_PICTURE], CPU, rounds=2, runs=1, pause=0, threshold=0)


def test_agreement(job):
    """1 for the same poses, less for others, None if no pose has a high enough score."""
    setting = Setting("float32", 2, SIZE, CPU)

    def shifted(pixel_values):
        outputs = job.reference(pixel_values)
        outputs.pred_keypoints = outputs.pred_keypoints + 0.05
        return outputs

    with torch.inference_mode():
        assert job.agreement(job.reference, setting) == pytest.approx(1)
        assert job.agreement(shifted, setting) < 0.99
        job.threshold = 1.0
        assert job.agreement(job.reference, setting) is None


def test_backends_take_turns(job, monkeypatch):
    calls = []

    def backend(name):
        def run(pixel_values):
            calls.append(name)
            return job.reference(pixel_values)

        return lambda model, setting: run

    for name in ("pytorch", "fused"):
        monkeypatch.setitem(BACKENDS, name, backend(name))
    rows = job.measure(["pytorch", "fused"], "float32", 1)
    turns = [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]
    # One to prepare, two rounds, and one for the agreement.
    assert turns == ["pytorch", "fused"] * 4
    assert [row["model"].runs for row in rows] == [2, 2]


def test_a_backend_that_breaks_down_later_is_left_out(job, monkeypatch):
    def backend(model, setting):
        results = [job.reference]

        def run(pixel_values):
            if not results:
                raise RuntimeError("worn out")
            return results.pop()(pixel_values)

        return run

    monkeypatch.setitem(BACKENDS, "pytorch", backend)
    broken, intact = job.measure(["pytorch", "fused"], "float32", 1)
    assert broken["skipped"] == "worn out" and intact["model"].median > 0


def test_variants_and_sizes(capsys):
    options = ["--model", "n", "--size", "64", "--backends", "fused", "--rounds", "1", "--runs", "1"]
    assert benchmark.main([*options, "--device", "cpu"]) == 0
    assert "n at 64x64, 4.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "missing"], "there is no model missing: no such folder, nor one of n, s, m, l, x"),
        (["--model", "."], "cannot load the configuration of ."),
        (["--images", "missing.png"], "--images missing.png: no such file"),
        (["--images", "file.txt"], "--images file.txt: not an image"),
        (["--output", "file.txt"], "--output file.txt is a file, not a folder"),
        (["--device", "teapot"], "cannot use --device teapot"),
    ],
)
def test_mistakes_are_told_in_one_line(command, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("not a picture")
    assert command(*options) == 1
    error = capsys.readouterr().err
    assert error.startswith("detrpose benchmark: error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("options", [["--backends", "teapot"], ["--batch-sizes", "0"], ["--precisions", "int8"]])
def test_wrong_arguments(command, options):
    with pytest.raises(SystemExit) as caught:
        command(*options)
    assert caught.value.code == 2


# ---------------------------------------------------------------- measuring


def test_timing_has_quartiles():
    timing = Timing.of([0.005, 0.001, 0.003, 0.002, 0.004])
    assert (timing.median, timing.low, timing.high, timing.runs) == pytest.approx((3, 2, 4, 5))
    assert timing.per_second(6) == pytest.approx(2000)
    assert Timing.of([0.002]) == Timing(2, 2, 2, 1)


def test_laps_split_runs():
    laps = Laps()
    for _ in range(2):
        laps.start()
        laps.end("first")
        laps.end("second")
    assert {name: timing.runs for name, timing in laps.timings().items()} == {"first": 2, "second": 2}
    assert laps.total().median == pytest.approx(sum(map(sum, laps.seconds.values())) * 1000 / 2)


def test_runs_are_warmed_up_and_keep_the_threads():
    threads, seen = torch.get_num_threads(), []
    assert time_runs(lambda: seen.append(torch.get_num_threads()), 3) > 0
    assert seen == [threads] * 5 and torch.get_num_threads() == threads


def test_machine_and_table():
    machine = describe_machine(CPU)
    assert machine["device"].startswith("cpu: ") and machine["threads"] >= 1
    assert format_table(["a", "bb"], [["1", "2"]]) == "| a | bb |\n| - | -- |\n| 1 | 2  |"
