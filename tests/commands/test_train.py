"""The training command on a few tiny pictures: what it writes, resuming, several processes, and what stops it."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import three_kinds
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

import fixed_norms
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands import evaluate, train
from transformers_detrpose.prediction.models import DEMONSTRATION_MODEL
from transformers_detrpose.training import Checkpoints

NUM_IMAGES = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Noise with three labelled keypoints per person, and pictures without anybody, in COCO's format."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, NUM_IMAGES + 1):
        name = f"{image_id}.png"
        Image.fromarray(rng.integers(0, 255, (80, 96, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": image_id, "file_name": name, "height": 80, "width": 96})
        for _ in range(image_id % 3):
            points = np.concatenate([rng.uniform(10, 70, (3, 2)), np.full((3, 1), 2)], axis=1)
            box = [*points[:, :2].min(0), *np.ptp(points[:, :2], axis=0)]
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "bbox": box}
            annotation |= {"keypoints": points.flatten().tolist(), "num_keypoints": 3, "area": box[2] * box[3] + 1}
            annotations.append(annotation | {"iscrowd": 0})
    categories = [{"id": 1, "name": "bird", "keypoints": ["beak", "left_wing", "right_wing"], "skeleton": [[1, 2]]}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "birds.json").write_text(json.dumps(content))
    return folder


def arguments(dataset: Path, output: Path, *options: str) -> list[str]:
    """A command line for two epochs of six steps with a tiny model, and all augmentation."""
    files = ["--train-images", str(dataset), "--train-annotations", str(dataset / "birds.json")]
    files += ["--val-images", str(dataset), "--val-annotations", str(dataset / "birds.json"), "--output", str(output)]
    sizes = ["--size", "64", "--epochs", "2", "--batch-size", "2", "--num-workers", "0", "--warmup-steps", "2"]
    sizes += ["--mixup", "0.25", "--copy-paste", "0.5"]
    fields = ["d_model=32", "decoder_layers=2", "num_queries=5", "encoder_ffn_dim=16", "decoder_ffn_dim=16"]
    return ["--model", "n", "--unfreeze-backbone-norms", *files, *sizes, *options, "--set", *fields]


def weights(output: Path, name: str = "state") -> dict[str, torch.Tensor]:
    return load_file(output / name / "model.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 0.0):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def assert_same_moments(output: Path, expected_output: Path):
    """Compares gradients as AdamW has averaged them."""
    found, expected = (
        torch.load(folder / "state" / "optimizer.bin", weights_only=True)["state"]
        for folder in (output, expected_output)
    )
    scale = torch.cat([state["exp_avg"].flatten() for state in expected.values()]).norm()
    assert scale > 0 and found.keys() == expected.keys()
    for index, state in expected.items():
        error = (found[index]["exp_avg"] - state["exp_avg"]).norm()
        assert error < 1e-2 * state["exp_avg"].norm() + 1e-4 * scale, index


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "output"
    assert train.main(arguments(dataset, output)) == 0
    return output


def test_what_is_written(trained):
    for name in ("last", "best"):
        model = DETRPoseForPoseEstimation.from_pretrained(trained / name)
        assert model.config.keypoint_schema.names == ("beak", "left_wing", "right_wing")
        assert model.config.keypoint_schema.flip_pairs == ((1, 2),)
        assert model.config.id2label == {0: "N/A", 1: "bird"}
        assert DETRPoseImageProcessor.from_pretrained(trained / name).size["height"] == 64
        assert "| AP |" in (trained / name / "README.md").read_text()
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 6), (2, 12)]
    assert all(0 <= line["AP"] <= 1 for line in lines)
    assert not [path.name for path in trained.iterdir() if path.name.startswith(".")]


def test_evaluates_as_often_as_asked(dataset, trained, tmp_path):
    options = ("--epochs", "3", "--eval-epochs", "2")
    assert train.main([*arguments(dataset, tmp_path), *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [2, 3]
    first = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert lines[0] == first  # two epochs of the same training


def test_averaged_weights_lag_behind(trained):
    last, current = weights(trained, "last"), weights(trained)
    assert any(not torch.equal(last[name], current[name]) for name in current)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_trains_on_a_gpu(dataset, accelerate_device, tmp_path, precision):
    """Also after an interruption; the other tests train on the CPU."""
    if accelerate_device.type == "cpu":
        pytest.skip("needs `--device cuda`")
    command = [*arguments(dataset, tmp_path), "--mixed-precision", precision]
    assert train.main(command) == 0
    assert train.main([*command, "--resume", "--epochs", "3"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, "last").values())


class Killed(BaseException):
    """What takes the place of a kill."""


@pytest.mark.parametrize("killed_at", [4, 9])
def test_resume_is_exact(dataset, trained, tmp_path, monkeypatch, killed_at):
    """Killed at a step between two saved states, then resumed: the weights of a run that never stopped."""
    show = train.show

    def killed(training, *args):
        show(training, *args)
        if training.progress.step == killed_at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "show", killed)
        with pytest.raises(Killed):
            train.main(arguments(dataset, tmp_path, "--save-steps", "3"))
    assert train.main(arguments(dataset, tmp_path, "--save-steps", "3", "--resume")) == 0
    assert_same(weights(tmp_path), weights(trained))
    assert_same(weights(tmp_path, "last"), weights(trained, "last"))


def test_resume_after_a_kill_between_scores_and_state(dataset, trained, tmp_path, monkeypatch):
    def killed(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_state", killed)
        with pytest.raises(Killed):
            train.main(arguments(dataset, tmp_path))
    assert train.main(arguments(dataset, tmp_path, "--resume")) == 1  # no state was ever saved
    with monkeypatch.context() as patch:
        save_state = Checkpoints.save_state
        patch.setattr(Checkpoints, "save_state", lambda self: self.progress.step < 12 and save_state(self))
        assert train.main(arguments(dataset, tmp_path / "once")) == 0
    assert train.main(arguments(dataset, tmp_path / "once", "--resume")) == 0
    assert (tmp_path / "once" / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()
    assert_same(weights(tmp_path / "once"), weights(trained))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [4, 6])
def test_a_signal_saves_the_state(dataset, trained, tmp_path, monkeypatch, capsys, number, code, step):
    """In the midst of an epoch, or after its last step; going on ends where a training without it does."""
    show = train.show

    def interrupted(training, *args):
        show(training, *args)
        if training.progress.step == step:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(train, "show", interrupted)
        assert train.main(arguments(dataset, tmp_path)) == code
    error = capsys.readouterr().err
    assert f"after step {step}, which is saved: the same command with --resume goes on" in error.splitlines()[-1]
    assert "Traceback" not in error
    assert train.main(arguments(dataset, tmp_path, "--resume")) == 0
    assert_same(weights(tmp_path), weights(trained))
    assert (tmp_path / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


def test_a_signal_in_an_evaluation_loses_nothing(dataset, trained, tmp_path, monkeypatch):
    evaluate_model = train.evaluate_model

    def interrupted(*args):
        signal.raise_signal(signal.SIGTERM)
        return evaluate_model(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate_model", interrupted)
        assert train.main(arguments(dataset, tmp_path)) == 143
    assert not (tmp_path / "metrics.jsonl").exists()
    assert train.main(arguments(dataset, tmp_path, "--resume")) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


def test_bad_gradients_are_skipped_and_counted(dataset, tmp_path, monkeypatch, caplog):
    compute_losses = train.compute_losses

    def poisoned(training, batch):
        losses = compute_losses(training, batch)
        factor = float("nan") if training.progress.step in (2, 3) else 1.0
        return {**losses, "loss": losses["loss"] * factor}

    monkeypatch.setattr(train, "compute_losses", poisoned)
    assert train.main(arguments(dataset, tmp_path, "--epochs", "1")) == 0
    assert "step 3, images [" in caplog.text and "the gradients are not finite; the step is skipped" in caplog.text
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["skipped_steps"] == 2 and line["loss"] > 0
    for name in ("last", "state"):
        assert all(tensor.isfinite().all() for tensor in weights(tmp_path, name).values())


def test_too_many_bad_gradients_stop_the_run(dataset, tmp_path, monkeypatch, capsys):
    compute_losses = train.compute_losses

    def poisoned(training, batch):
        losses = compute_losses(training, batch)
        return {**losses, "loss": losses["loss"] * (float("inf") if training.progress.step > 0 else 1.0)}

    monkeypatch.setattr(train, "compute_losses", poisoned)
    assert train.main(arguments(dataset, tmp_path)) == 1
    assert "the gradients are not finite, like those of the 9 steps before" in capsys.readouterr().err.splitlines()[-1]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_accumulation_trains_like_one_batch(dataset, tmp_path, monkeypatch):
    """As `test_two_processes_train_like_one`, with one process that takes the batches one after the other."""
    options = ["--epochs", "1", "--batch-size", "4", "--no-augment", "--lr", "1e-9", "--backbone-lr", "1e-9"]
    monkeypatch.setattr(train, "get_model", fixed_norms.get_model)
    for name, steps in (("one", "1"), ("two", "2")):
        line = arguments(dataset, tmp_path / name, *options, "--gradient-accumulation-steps", steps)
        assert train.main([*line, "num_denoising=0"]) == 0
    assert_same_moments(tmp_path / "two", tmp_path / "one")
    lines = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "two")]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-4) and lines[0]["step"] == lines[1]["step"] == 3


def test_a_process_that_loads_images_is_killed(dataset, trained, tmp_path, monkeypatch, capsys):
    """Going on from the last saved state ends where a training without it does."""
    show = train.show

    def killed(training, report, bar):
        show(training, report, bar)
        if training.progress.step == 2:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(train, "show", killed)
        assert train.main(arguments(dataset, tmp_path, "--num-workers", "1", "--save-steps", "1")) == 1
    error = capsys.readouterr().err
    assert "is killed by signal" in error and f"--resume goes on from {tmp_path / 'state'}" in error
    assert "Traceback" not in error
    assert train.main(arguments(dataset, tmp_path, "--resume")) == 0
    assert_same(weights(tmp_path), weights(trained))


def test_a_broken_image_is_named(dataset, tmp_path, capsys):
    """Only decoding finds it, which happens in a process of the loader."""
    for path in dataset.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").write_bytes(content[: len(content) // 2])
    assert train.main(arguments(tmp_path, tmp_path / "output", "--num-workers", "1")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "images could not be loaded: cannot read image 7 (7.png)" in error and "--resume goes on after step" in error
    assert (tmp_path / "output" / "state" / "progress.json").exists()


def test_metrics_have_losses_and_rates(trained):
    for line in map(json.loads, (trained / "metrics.jsonl").read_text().splitlines()):
        parts = [line["loss_class"], line["loss_keypoints"], line["loss_similarity"]]
        assert 0 < sum(parts) < line["loss"] and (line["lr"], line["backbone_lr"]) == (1e-4, 1e-4)
        assert line["skipped_steps"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "3"], "--batch-size was 2 and is 3 now"),
        (["--seed", "7"], "--seed was 0 and is 7 now"),
        (["--size", "96"], "--size was 64 and is 96 now"),
        (["--mixup", "0"], "--mixup was 0.25 and is 0"),
        (["--recipe", "coco"], "--recipe was None and is coco now"),
        (["--no-share-keypoints"], "--no-share-keypoints was False and is True now"),
    ],
)
def test_resuming_compares_arguments(dataset, trained, capsys, monkeypatch, options, message):
    monkeypatch.setattr(train, "variant_of", lambda config: "n")
    assert train.main(arguments(dataset, trained, "--resume", *options)) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_resuming_compares_datasets(dataset, trained, tmp_path, capsys):
    content = json.loads((dataset / "birds.json").read_text())
    (tmp_path / "birds.json").write_text(json.dumps({**content, "images": content["images"][:-1]}))
    line = arguments(dataset, trained, "--resume", "--train-annotations", str(tmp_path / "birds.json"))
    assert train.main(line) == 1
    message = "--train-annotations was birds.json (12 images) and is birds.json (11 images) now"
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_resuming_takes_another_rate_over(dataset, trained, tmp_path, caplog):
    shutil.copytree(trained, tmp_path / "copy")
    assert train.main(arguments(dataset, tmp_path / "copy", "--resume", "--lr", "5e-5", "--epochs", "3")) == 0
    assert "--lr was 0.0001 and is 5e-05 from now on" in caplog.text and "--epochs was 2 and is 3" in caplog.text
    line = json.loads((tmp_path / "copy" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["epoch"], line["lr"], line["backbone_lr"]) == (3, 5e-5, 1e-4)


def test_resuming_a_finished_training_says_so(dataset, trained, caplog):
    before = (trained / "metrics.jsonl").read_text()
    with caplog.at_level("INFO"):
        assert train.main(arguments(dataset, trained, "--resume")) == 0
    assert "finished already" in caplog.text and (trained / "metrics.jsonl").read_text() == before


def test_stops_at_a_loss_that_is_not_finite(dataset, tmp_path, monkeypatch, capsys):
    """The images are named, and what was saved before is intact."""
    compute_losses = train.compute_losses

    def poisoned(training, batch):
        if training.progress.step == 8:
            batch["pixel_values"][0, 0, 0, 0] = float("nan")
        return compute_losses(training, batch)

    monkeypatch.setattr(train, "compute_losses", poisoned)
    assert train.main(arguments(dataset, tmp_path)) == 1
    message = capsys.readouterr().err
    assert "epoch 1, step 8, images [" in message and "Traceback" not in message
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, "last").values())
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]


def test_two_processes_train_like_one(dataset, tmp_path, monkeypatch):
    """The same batches, shared by two processes: counts and gradients are those of the whole batch.

    Gradients are compared as AdamW has averaged them over the steps, for it turns the rounding errors of gradients that
    should be zero into whole steps; the tiny learning rate keeps these from adding up. Without denoising, whose noise
    every process draws for its own images, and with fixed norms, which PyTorch synchronises on GPUs only.
    """
    options = ["--epochs", "1", "--batch-size", "4", "--no-augment", "--lr", "1e-9", "--backbone-lr", "1e-9"]
    lines = {name: [*arguments(dataset, tmp_path / name, *options), "num_denoising=0"] for name in ("one", "two")}
    monkeypatch.setattr(train, "get_model", fixed_norms.get_model)
    assert train.main(lines["one"]) == 0
    # `accelerate launch --cpu` would start a single process.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(
        [*launch, fixed_norms.__file__, *lines["two"]], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("batch norms are not synchronised") == 1
    assert (tmp_path / "two" / "state" / "random_states_1.pkl").exists()  # written by the second process

    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"), tolerance=1e-5)
    assert_same_moments(tmp_path / "two", tmp_path / "one")


def test_fine_tunes_a_folder(trained, dataset, tmp_path):
    """From a saved model, with other classes: what fits is kept, heads that do not fit start fresh."""
    content = json.loads((dataset / "birds.json").read_text())
    content["categories"].append({**content["categories"][0], "id": 2, "name": "plane"})
    (tmp_path / "two.json").write_text(json.dumps(content))
    line = arguments(dataset, tmp_path / "tuned", "--epochs", "1")
    line[line.index("--model") + 1] = str(trained / "last")
    line[line.index("--train-annotations") + 1] = str(tmp_path / "two.json")
    line = line[: line.index("--set")]
    assert train.main([*line, "--lr", "1e-12", "--backbone-lr", "1e-12"]) == 0
    tuned = DETRPoseForPoseEstimation.from_pretrained(tmp_path / "tuned" / "last")
    assert tuned.config.id2label == {0: "N/A", 1: "bird", 2: "plane"}
    name = "model.decoder.position_head.layers.0.weight"
    torch.testing.assert_close(tuned.state_dict()[name], weights(trained, "last")[name], atol=1e-6, rtol=0)


def test_trains_and_evaluates_on_normalized_images_if_the_model_does(trained, dataset, tmp_path, monkeypatch):
    """And saves an image processor that normalizes."""
    model = tmp_path / "model"
    shutil.copytree(trained / "last", model)
    statistics = {"image_mean": [5.0, 4.0, 3.0], "image_std": [0.5, 0.5, 0.5]}
    DETRPoseImageProcessor(keypoint_schema="coco", do_normalize=True, **statistics).save_pretrained(model)
    largest = []
    forward = DETRPoseForPoseEstimation.forward

    def remember(self, pixel_values, **kwargs):
        largest.append(pixel_values.amax((0, 2, 3)).tolist())
        return forward(self, pixel_values, **kwargs)

    monkeypatch.setattr(DETRPoseForPoseEstimation, "forward", remember)
    line = arguments(dataset, tmp_path / "output", "--epochs", "1")
    line[line.index("--model") + 1] = str(model)
    assert train.main(line[: line.index("--set")]) == 0
    assert len(largest) > 6  # six steps, and the evaluation
    # (pixel - mean) / std with pixels from 0 to 1
    assert all(-10 <= red <= -8 and -8 <= green <= -6 and -6 <= blue <= -4 for red, green, blue in largest)
    saved = DETRPoseImageProcessor.from_pretrained(tmp_path / "output" / "last")
    assert (saved.do_normalize, list(saved.image_mean), saved.size["height"]) == (True, [5.0, 4.0, 3.0], 64)


def test_a_model_without_image_processor_is_trained_on_images_from_0_to_1(trained, dataset, tmp_path, caplog):
    shutil.copytree(trained / "last", tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    line = arguments(dataset, tmp_path)
    args = train.parse_arguments([*line[: line.index("--set")], "--model", str(tmp_path / "model")])
    processor = train.get_image_processor(args, DETRPoseConfig.from_variant("n").keypoint_schema)
    assert not processor.do_normalize and "has no preprocessor_config.json" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train-annotations", "nowhere.json"], "nowhere.json"),
        (["--recipe", "coco"], "sizes n, s, m, l, x"),
        (["--resume"], "no state to resume"),
        (["--batch-size", "3", "--gradient-accumulation-steps", "2"], "--batch-size 3"),
        (["--model", "nowhere"], "there is no model nowhere: no such folder"),
        (["--set", "foo=1"], "no field foo"),
        (["--mixup", "0.6"], "their sum must be at most 1, but got 0.6 and 0.5"),
        (["--set", "model_type=bert"], "no field model_type"),
    ],
)
def test_one_line_errors(dataset, tmp_path, capsys, options, message):
    assert train.main(arguments(dataset, tmp_path, *options)) == 1
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


def test_refuses_to_overwrite(dataset, trained, capsys):
    assert train.main(arguments(dataset, trained)) == 1
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "-1"], "-1 is not a number of at least 0"),
        (["--lr", "nan"], "nan is not a number of at least 0"),
        (["--ema-decay", "5"], "5 is not a number from 0 to 1"),
        (["--ema-decay", "nan"], "nan is not a number from 0 to 1"),
        (["--warmup-steps", "0.5"], "0.5 is not a whole number of at least 0"),
        (["--epochs", "0"], "0 is not a whole number of at least 1"),
        (["--set", "foo"], "foo is not FIELD=VALUE"),
    ],
)
def test_impossible_arguments(dataset, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        train.main(arguments(dataset, tmp_path, *options))
    assert caught.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_nobody_to_learn_from(dataset, tmp_path, capsys):
    content = json.loads((dataset / "birds.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    assert train.main(arguments(dataset, tmp_path / "out", "--train-annotations", str(tmp_path / "empty.json"))) == 1
    assert "its 12 images have no labelled keypoints" in capsys.readouterr().err.splitlines()[-1]


def test_a_broken_dataset_is_reported_in_one_line(dataset, tmp_path, capsys):
    content = json.loads((dataset / "birds.json").read_text())
    content["images"][0]["file_name"] = "gone.png"
    (tmp_path / "gone.json").write_text(json.dumps(content))
    assert train.main(arguments(dataset, tmp_path / "out", "--val-annotations", str(tmp_path / "gone.json"))) == 1
    assert "image files that do not exist: 1 (image 1 (gone.png))" in capsys.readouterr().err.splitlines()[-1]


def test_help_says_what_a_recipe_does_to_images_without_people(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "leaves out images without people" in text and "(default: True)" not in text


def test_a_recipe(dataset, tmp_path, caplog):
    """Its numbers and the options that win over them; images without people are left out, which the log says."""
    line = arguments(dataset, tmp_path, "--recipe", "coco")
    args = train.parse_arguments(line[: line.index("--set")])
    recipe = train.get_recipe(args, DETRPoseConfig.from_variant("m"))
    assert (recipe.lr, recipe.backbone_lr, recipe.base_size_repeats) == (1e-4, 1e-5, 6)
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (2, 2, 1e-4)
    assert (recipe.mixup, recipe.copy_paste) == (0.25, 0.5)
    with caplog.at_level("INFO"):
        train_dataset, val_dataset = train.get_datasets(args, Accelerator(), train.get_annotations(args))
    assert "--recipe coco: 4 images without people are left out" in caplog.text
    assert (len(train_dataset), len(val_dataset)) == (8, 12)


def test_classes_with_different_keypoints(tmp_path, capsys):
    """A model of people learns dogs and balls as well, goes on with other keypoints, and is scored for each class."""
    images, file = three_kinds.write_figures(tmp_path / "data", range(6), size=96)
    data = ["--train-images", images, "--train-annotations", file, "--val-images", images, "--val-annotations", file]
    fields = ["--set", "classification_loss=focal", "num_denoising=4"]
    options = ["--size", "96", "--batch-size", "6", "--num-workers", "0", "--unfreeze-backbone-norms", "--no-augment"]
    options += ["--lr", "4e-4", "--backbone-lr", "2e-4", "--warmup-steps", "0"]

    def run(model, output, *extra):
        assert train.main(list(map(str, ["--model", model, *data, "--output", output, *options, *extra, *fields]))) == 0
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return DETRPoseConfig.from_pretrained(output / "last"), lines

    config, lines = run(DEMONSTRATION_MODEL, tmp_path / "shared", "--epochs", "8", "--eval-epochs", "4")
    assert config.keypoint_schema == three_kinds.SCHEMA and config.num_keypoints == 23
    assert all({"AP", "AP person", "AP dog", "AP ball"} <= line.keys() for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    config, _ = run(tmp_path / "shared" / "last", tmp_path / "apart", "--epochs", "1", "--no-share-keypoints")
    assert config.num_keypoints == 24 and "dog.nose" in config.keypoint_schema.names
    card = (tmp_path / "apart" / "last" / "README.md").read_text()
    assert "- dog: 6, in this order: tail, nose, " in card and "- ball: 1, in this order: center." in card

    capsys.readouterr()
    arguments = ["--model", tmp_path / "apart" / "last", "--images", images, "--annotations", file]
    arguments += ["--scores", tmp_path / "scores.json", "--num-workers", "0"]
    assert evaluate.main(list(map(str, arguments))) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[-4:] == ["all", "person", "dog", "ball"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["AP"] == pytest.approx(np.mean([found["AP"] for found in scores["classes"].values()]))
