"""The report of `detrpose benchmark` on a tiny model: what is measured, skipped and written, and mistakes."""

import json
import subprocess
import sys

import pytest
import torch

from saved_model import SIZE, save_tiny_model
from transformers_detrpose.commands import benchmark, benchmark_training
from transformers_detrpose.deployment.benchmarking import report as report_module
from transformers_detrpose.deployment.benchmarking.precision import compare_precisions, precisions
from transformers_detrpose.deployment.benchmarking.report import Extent, Report, run_within
from transformers_detrpose.deployment.benchmarking.schedule import Job, Schedule
from transformers_detrpose.loading import load_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def command(model_dir, device, tmp_path):
    """Runs the command with the tiny model."""

    def run(*options, report=tmp_path / "out"):
        given = ["--report", report, "--models", model_dir, "--device", device, "--rounds", 2, *options]
        return benchmark.main([str(option) for option in given])

    return run


def test_what_is_written(command, model_dir, device, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report_module, "DEMONSTRATION_MODEL", model_dir)
    all_jobs, quick = Report.jobs, ("poses", "precision", "latency", "shares")
    monkeypatch.setattr(Report, "jobs", lambda self: [job for job in all_jobs(self) if job.part in quick])
    assert command("--batch-sizes", 1, 2, "--precisions", "float32") == 0
    results = json.loads((tmp_path / "out" / "report.json").read_text())
    assert results["skipped"] == [] and results["machine"]["versions"]["torch"] == torch.__version__
    names = [precision.name for precision in precisions(device)]
    assert [row["precision"] for row in results["parts"]["precision"]] == names
    assert [row["precision"] for row in results["parts"]["poses"]] == names
    latencies = {(row["backend"], row["batch_size"]): row["latency"] for row in results["parts"]["latency"]}
    assert {("pytorch", 1), ("fused", 1), ("pytorch", 2), ("fused", 2)} <= set(latencies)
    assert all(timing["runs"] == 2 and timing["median"] > 0 for timing in latencies.values())
    parts = ["backbone", "encoder", "query_selection", "decoder", "post_processing"]
    assert [list(row["parts"]) for row in results["parts"]["shares"]] == [parts] * 2
    page = (tmp_path / "out" / "report.md").read_text()
    assert capsys.readouterr().out.splitlines()[4:] == page.splitlines()[4:]  # the seconds so far are above
    assert f"| {latencies['fused', 2]['median']:.2f} (" in page and "Not measured" not in page


def test_no_time(command, tmp_path):
    """What does not fit is named, the most important first."""
    assert command("--time-limit", 0) == 0
    results = json.loads((tmp_path / "out" / "report.json").read_text())
    assert results["parts"] == {} and [item["part"] for item in results["skipped"]][:2] == ["poses", "precision"]
    assert {item["part"] for item in results["skipped"]} >= {"latency", "shares", "training", "compile"}
    page = (tmp_path / "out" / "report.md").read_text()
    assert "- poses, demonstration model: it may take 20 s, but only 0 s were left\n" in page


def test_training_steps(model_dir, accelerate_device, monkeypatch):
    """Measured by the other command, here in this process."""

    def run(command, device, seconds):
        code = benchmark_training.main([*command[4:], *(["--cpu"] if device.type == "cpu" else [])])
        return subprocess.CompletedProcess(command, code, stderr="")

    monkeypatch.setattr(report_module, "run_within", run)
    extent = Extent(models=[str(model_dir)], training_batch_size=2)
    report = Report(accelerate_device, extent, 100, write=print)
    (row,) = report.training(str(model_dir), "bf16")
    assert row["precision"] == "bf16" and row["peak_memory_mib"] > 0
    assert row["images_per_second"] == pytest.approx(2 * row["steps_per_second"])


def test_processes_of_training():
    cpu = torch.device("cpu")
    program = "import os, sys; sys.exit(f'{sys.argv[1:]} {os.environ[\"ACCELERATE_TORCH_DEVICE\"]}')"
    assert run_within([sys.executable, "-c", program], cpu, 60).stderr == "['--cpu'] cpu\n"
    assert run_within([sys.executable, "-c", program], torch.device("cuda:1"), 60).stderr == "[] cuda:1\n"
    with pytest.raises(RuntimeError, match="the time was up"):
        run_within([sys.executable, "-c", "import time; time.sleep(60)"], cpu, 0.1)


def test_a_failed_training_step_has_a_reason(model_dir, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stderr="one\ntwo: out of luck\n")
    monkeypatch.setattr(report_module, "run_within", lambda *_: failed)
    report = Report(torch.device("cpu"), Extent(models=[str(model_dir)]), 100, write=print)
    with pytest.raises(RuntimeError, match="^two: out of luck$"):
        list(report.training(str(model_dir), "no"))


# ---------------------------------------------------------------- precisions


def test_precisions_differ(model_dir, device):
    rows = {row["precision"]: row for row in compare_precisions(load_model(str(model_dir)), SIZE, device)}
    exact, half = rows["float32"], rows["bfloat16"]
    for name in ("backbone", "encoder", "selection_logits", "logits", "keypoints_median", "keypoints_largest"):
        assert exact[name] < 1e-3 and half[name] > 10 * exact[name], name


def test_an_error_stays_in_its_stage(model_dir, device):
    """The backbone is wrong by a hundredth in float32, and the encoder gets what it should have computed."""
    model = load_model(str(model_dir))

    def wrong_in_float32(module, inputs, output):
        if output.feature_maps[0].dtype == torch.float32:
            output.feature_maps = tuple(1.01 * feature_map for feature_map in output.feature_maps)
        return output

    model.model.backbone.register_forward_hook(wrong_in_float32)
    row = next(iter(compare_precisions(model, SIZE, device)))
    assert row["backbone"] == pytest.approx(0.01, rel=1e-2)
    assert row["encoder"] < 1e-5 and row["logits"] < 1e-3 and row["keypoints_largest"] < 1e-2


# ---------------------------------------------------------------- the time


def broken():
    yield {"value": 1}
    raise RuntimeError("out of luck\nat line 3")


def test_schedule():
    schedule, calls = Schedule(limit=1000), []
    jobs = [
        Job("a", "good", lambda: [{"value": 0}, {"skipped": "no such backend"}], seconds=1),
        Job("a", "broken", broken, seconds=1),
        Job("b", "long", lambda: [{"value": 2}], seconds=2000),
        Job("b", "short", lambda: [{"value": 3}], seconds=1),
    ]
    schedule.run(jobs, lambda: calls.append(len(schedule.skipped)))
    assert schedule.rows == {"a": [{"value": 0}, {"value": 1}], "b": [{"value": 3}]}
    reasons = {item["job"]: item["reason"] for item in schedule.skipped}
    assert reasons["good"] == "no such backend" and reasons["broken"] == "out of luck"
    assert reasons["long"].startswith("it may take 2000 s, but only ") and "short" not in reasons
    assert calls == [1, 2, 3]


def test_long_jobs_are_expected_to_be_long():
    schedule = Schedule(limit=1000, longest={"a": 800})
    schedule.run([Job("a", "next", lambda: [], seconds=1)], lambda: None)
    assert schedule.skipped[0]["reason"].startswith("it may take 1200 s")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--device", "teapot"], "cannot use --device teapot"), (["--models", "missing"], "there is no model missing")],
)
def test_mistakes_are_told_in_one_line(command, tmp_path, capsys, options, message):
    assert command(*options) == 1
    error = capsys.readouterr().err
    assert error.startswith("detrpose benchmark: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder(command, tmp_path, capsys):
    (tmp_path / "file.txt").touch()
    assert command(report=tmp_path / "file.txt") == 1
    assert "file.txt is a file, not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report", "out", "--model", "n"], None),  # the default
        (["--report", "out", "--model", "l"], "--model has no effect with --report"),
        (["--report", "out", "--images", "a.png"], "--images has no effect with --report"),
        (["--time-limit", "60"], "--time-limit has no effect without --report"),
    ],
)
def test_options_without_effect(options, message, capsys):
    if message is None:
        assert benchmark.parse_arguments(options).report
        return
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(options)
    assert message in capsys.readouterr().err
