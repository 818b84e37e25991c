"""The ablation script, with a stand-in for the training."""

import importlib.util
import json
from pathlib import Path

import pytest

from transformers_detrpose import DETRPoseConfig

SCRIPT = Path(__file__).parents[2] / "examples" / "ablation.py"

# Replaces train.py: records its command line and writes scores.
FAKE_TRAINING = """
import json, pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
with open(output / "calls.txt", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
ap = 0.2 if "use_fdr_heads=true" in sys.argv else 0.1
line = {"epoch": 3, "AP": ap, "AP50": 0.5, "AP75": 0.25, "AR": 0.3 + 0.1 * int(sys.argv[sys.argv.index("--seed") + 1])}
(output / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
"""


@pytest.fixture
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_training(ablation, tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text(FAKE_TRAINING)
    monkeypatch.setattr(ablation, "TRAIN", script)


def test_steps_add_up_to_the_full_method(ablation):
    steps = list(ablation.configurations().values())
    default = DETRPoseConfig()
    assert all(value == getattr(default, field) for field, value in steps[-2].items() if field != "num_denoising")
    for before, after in zip(steps, steps[1:], strict=False):
        assert sum(before[field] != after[field] for field in after) == 1
    for fields in steps:
        DETRPoseConfig(**fields)


def test_prints_a_row_per_step_and_repeats_nothing(ablation, tmp_path, fake_training, capsys):
    command = ["--data", str(tmp_path / "people"), "--output", str(tmp_path / "out"), "--seeds", "0", "1"]
    for _ in range(2):
        assert ablation.main(command) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 * (2 + len(ablation.STEPS))
    assert rows[2] == "| baseline | 0.100 | 0.500 | 0.250 | 0.350 |"  # AR: mean of both seeds
    assert rows[4].startswith("| + FDR heads | 0.200 |")
    calls = list((tmp_path / "out").glob("*/*/calls.txt"))
    assert len(calls) == 2 * len(ablation.STEPS)
    assert all(len(call.read_text().splitlines()) == 1 for call in calls)


def test_a_training_that_fails_is_named(ablation, tmp_path, fake_training, capsys, monkeypatch):
    ablation.TRAIN.write_text("raise SystemExit(3)")
    assert ablation.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "baseline" in error and "exit status 3" in error


def test_a_broken_off_training_is_resumed(ablation, tmp_path, fake_training):
    folder = tmp_path / "out" / "baseline" / "seed-0"
    (folder / "state").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "AP": 0.0}) + "\n")
    assert ablation.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert "--resume" in (folder / "calls.txt").read_text()
