"""The output folder of a training: what a kill at any instant leaves, and that no state runs code."""

import importlib
import json
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from kills import Kill, Killed

from transformers_detrpose.training import (
    Checkpoints,
    Progress,
    Settings,
    WeightAverage,
    build_optimizer,
    build_scheduler,
)
from transformers_detrpose.training.checkpoints import fingerprints
from transformers_detrpose.training.settings import CHANGEABLE, FIXED

resource = None if sys.platform == "win32" else importlib.import_module("resource")


def checkpoints_in(folder, accelerator=None, lr=0.1, settings=None):
    """Returns the checkpoints of a training of a single layer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    accelerator = accelerator or Accelerator(cpu=True)
    optimizer = build_optimizer(model, lr, lr, 0.0)
    average = WeightAverage(model)
    accelerator.prepare(model, optimizer)
    checkpoints = Checkpoints(folder, accelerator, average, build_scheduler(optimizer, 3), Progress(), settings)
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


def save(folder):
    """Goes on from a state by one step, as a training does, and saves the next one."""
    run = checkpoints_in(folder)
    run.checkpoints.load_state()
    step(run)
    run.checkpoints.save_state()


def test_any_two_kills_leave_a_state(tmp_path):
    """Each while a state was loaded, the next one written, or the last one removed."""
    first, killed = 0, True
    while killed:
        killed, second, again = False, 0, True
        while again:
            folder = tmp_path / f"{first}-{second}"
            run = checkpoints_in(folder)
            run.checkpoints.save_state()
            killed |= is_killed(first, folder)
            before = progress_in(folder)
            again = is_killed(second, folder)
            assert progress_in(folder) - before in ((0, 1) if again else (1,)), (first, second)
            second += 7  # prime to the number of operations, so that all are met with some first kill
        first += 3
    assert first > 20


def is_killed(operation, folder) -> bool:
    try:
        with Kill(operation):
            save(folder)
    except Killed:
        return True
    return False


def progress_in(folder) -> int:
    """Returns the step of the state in a folder, which has to be whole."""
    run = checkpoints_in(folder)
    run.checkpoints.load_state()
    return run.progress.step


@pytest.mark.parametrize(
    "name", ["model.safetensors", "average.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"]
)
def test_a_damaged_state_is_refused_by_name(tmp_path, name):
    checkpoints_in(tmp_path).checkpoints.save_state()
    path = tmp_path / "state" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        checkpoints_in(tmp_path).checkpoints.load_state()
    path.unlink()
    with pytest.raises(ValueError, match="holds no state" if name == "progress.json" else f"{name} is missing"):
        checkpoints_in(tmp_path).checkpoints.load_state()


@pytest.mark.skipif(resource is None, reason="needs limits of file sizes")
def test_a_full_disk_loses_nothing(tmp_path):
    run = checkpoints_in(tmp_path)
    run.checkpoints.save_state()
    step(run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"(No space left on device|File too large): .*state"):
            run.checkpoints.save_state()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert progress_in(tmp_path) == 0 and [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("which", ["model", "average"])
def test_what_is_not_finite_is_not_saved(tmp_path, which):
    run = checkpoints_in(tmp_path)
    run.checkpoints.save_state()
    step(run)
    broken = run.model if which == "model" else run.checkpoints.average.module
    broken.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of [0-9] weights are not finite, such as .*weight: they are not saved"):
        run.checkpoints.save_state()
    assert progress_in(tmp_path) == 0
    if which == "average":
        with pytest.raises(ValueError, match="are not finite"):
            run.checkpoints.save_weights("last", None, "", {})
        assert not (tmp_path / "last").exists()


def settings(**options):
    defaults = dict.fromkeys((*FIXED, *CHANGEABLE), 1)
    return Settings.of({**defaults, **options})


@pytest.mark.parametrize(
    ("name", "option"), [("batch_size", "--batch-size"), ("seed", "--seed"), ("num_processes", "--num-processes")]
)
def test_another_training_is_not_resumed(tmp_path, name, option):
    checkpoints_in(tmp_path, settings=settings(**{name: 4})).checkpoints.save_state()
    other = checkpoints_in(tmp_path, settings=settings(**{name: 8}))
    with pytest.raises(ValueError, match=f"--resume: {option} was 4 and is 8 now"):
        other.checkpoints.load_state()


def test_another_learning_rate_is_taken_over(tmp_path, caplog):
    """As if the warm-up had led to it."""
    first = checkpoints_in(tmp_path, settings=settings(lr=0.1))
    step(first)
    first.checkpoints.save_state()
    second = checkpoints_in(tmp_path, lr=0.3, settings=settings(lr=0.3))
    second.checkpoints.load_state()
    assert "--lr was 0.1 and is 0.3 from now on" in caplog.text
    rates = []
    for _ in range(3):
        rates.append(second.optimizer.param_groups[1]["lr"])
        step(second)
    assert rates == pytest.approx([0.2, 0.3, 0.3])
