"""The output folder of a training: what a kill at any instant leaves, and that no state runs code."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from transformers_detrpose.training import Checkpoints, Progress, WeightAverage, build_optimizer, build_scheduler
from transformers_detrpose.training.checkpoints import fingerprints


def checkpoints_in(folder, accelerator=None):
    """Returns the checkpoints of a training of a single layer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    accelerator = accelerator or Accelerator(cpu=True)
    optimizer = build_optimizer(model, 0.1, 0.1, 0.0)
    average = WeightAverage(model)
    accelerator.prepare(model, optimizer)
    checkpoints = Checkpoints(folder, accelerator, average, build_scheduler(optimizer, 3), Progress())
    return SimpleNamespace(checkpoints=checkpoints, model=model, optimizer=optimizer, progress=checkpoints.progress)


def step(run):
    run.model(torch.ones(1, 2)).sum().backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.checkpoints.scheduler.step()
    run.checkpoints.average.update_parameters(run.model)
    run.progress.count_step()


def forge_fingerprints(folder):
    """Makes the files in a state those that it says it has."""
    content = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps({**content, "files": fingerprints(folder)}))


def test_everything_comes_back(tmp_path):
    first = checkpoints_in(tmp_path)
    for _ in range(4):
        step(first)
    first.progress.best_ap = 0.25
    first.checkpoints.save_state()
    second = checkpoints_in(tmp_path)
    second.checkpoints.load_state()
    assert second.progress == first.progress == Progress(0, 4, 4, 0.25)
    for run in (first, second):
        step(run)
    assert first.optimizer.param_groups[1]["lr"] == second.optimizer.param_groups[1]["lr"]
    assert torch.equal(first.model.weight, second.model.weight)
    averages = [run.checkpoints.average.state_dict() for run in (first, second)]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_no_state_runs_code(tmp_path):
    """Nothing in a state is read by running what a pickle asks for."""
    run = checkpoints_in(tmp_path)
    step(run)
    run.checkpoints.save_state()
    names = {path.name for path in (tmp_path / "state").iterdir()}
    assert names == {
        "model.safetensors",
        "average.safetensors",
        "progress.json",
        "optimizer.bin",
        "random_states_0.pkl",
    }

    class Malice:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name in ("optimizer.bin", "random_states_0.pkl"):
        content = (tmp_path / "state" / name).read_bytes()
        torch.save(Malice(), tmp_path / "state" / name)
        forge_fingerprints(tmp_path / "state")
        try:
            checkpoints_in(tmp_path).checkpoints.load_state()
        except pickle.UnpicklingError:
            pass
        assert not (tmp_path / "ran").exists()
        (tmp_path / "state" / name).write_bytes(content)


@pytest.mark.parametrize("has_new", [False, True])
def test_a_kill_while_the_state_was_replaced(tmp_path, has_new):
    """Between moving the old state aside and the new one into its place; the new one is complete by then."""
    run = checkpoints_in(tmp_path)
    step(run)
    run.checkpoints.save_state()
    beside = tmp_path / ".state-abc"
    beside.mkdir()
    (tmp_path / "state").rename(beside / "replaced")
    if has_new:
        step(run)
        run.checkpoints.save_state()
        (tmp_path / "state").rename(beside / "state")
    again = checkpoints_in(tmp_path)
    again.checkpoints.load_state()
    assert again.progress.step == 1 + has_new
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_kill_while_the_first_state_was_written(tmp_path):
    (tmp_path / ".state-abc" / "state").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no state to resume from"):
        checkpoints_in(tmp_path).checkpoints.load_state()


def test_scores_after_the_state_are_dropped(tmp_path):
    run = checkpoints_in(tmp_path)
    step(run)
    run.progress.count_epoch()
    run.checkpoints.add_scores({"AP": 0.5})
    run.checkpoints.save_state()
    run.progress.count_epoch()
    run.checkpoints.add_scores({"AP": 0.75})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "st')  # killed while it was written
    checkpoints_in(tmp_path).checkpoints.load_state()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1, "step": 1, "AP": 0.5}]
