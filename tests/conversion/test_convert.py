"""Converting official checkpoints: every layout, the folder that is written, and what both commands must refuse."""

import argparse
import json
import math
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from official_layouts import (
    CASE,
    CROWDPOSE_N,
    LAYOUTS,
    MARKER,
    OUR_MARKER,
    assert_same,
    save_pth,
    save_safetensors,
    save_shards,
)
from transformers_detrpose import DETRPoseConfig, DETRPoseImageProcessor
from transformers_detrpose.commands import convert as convert_detrpose
from transformers_detrpose.commands import convert_dfine
from transformers_detrpose.conversion import checkpoints, saving
from transformers_detrpose.conversion.names import COMPUTED, COUNTER
from transformers_detrpose.keypoint_schemas import CROWDPOSE_PERSON

CONVERSION = Path(__file__).parents[2] / "conversion"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, official, converted, convert, tmp_path):
    tensors = convert(convert_detrpose, LAYOUTS[layout](official, tmp_path), *CROWDPOSE_N)
    assert_same(tensors, load_file(converted(CASE.name) / "model.safetensors"))


def test_every_tensor_arrives(official, converted):
    tensors = load_file(converted(CASE.name) / "model.safetensors")
    used = set()
    for name, tensor in official.items():
        if COMPUTED.match(name) or COUNTER.search(name):
            continue
        parts = [f"model.{part}" for part in CASE.our_names(name)]
        if "in_proj" in name:
            assert [part.split(".")[-2] for part in parts] == ["q_proj", "k_proj", "v_proj"]
        assert torch.equal(torch.cat([tensors[part] for part in parts]), tensor), name
        used.update(parts)
    assert used == {name for name in tensors if not COUNTER.search(name)}


@pytest.mark.parametrize("weights, expected", [("best", 1.0), ("averaged", 1.0), ("last", 0.0)])
def test_choice_of_weights(weights, expected, official, convert, tmp_path):
    averaged, last = ({**official, MARKER: torch.full_like(official[MARKER], value)} for value in (1.0, 0.0))
    args = argparse.Namespace(lr=1e-4, config_file="configs/detrpose_n.py", options=None)
    path = save_pth(lambda _: {"model": last, "ema": {"module": averaged}, "args": args})(None, tmp_path)
    tensors = convert(convert_detrpose, path, *CROWDPOSE_N, "--weights", weights)
    assert (tensors[OUR_MARKER] == expected).all()


@pytest.mark.parametrize("layout, weights, other", [("last", "averaged", "last"), ("averaged", "last", "averaged")])
def test_weights_that_are_not_there(layout, weights, other, refusal, tmp_path):
    path = LAYOUTS[layout]({MARKER: torch.zeros(1, 128)}, tmp_path)
    assert f"try --weights {other}" in refusal(convert_detrpose, path, *CROWDPOSE_N, "--weights", weights)


# ---------------------------------------------------------------- the folder


def test_folder_is_complete(converted):
    folder = converted(CASE.name)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
        # the code, for trust_remote_code=True
        "affine_block.py",
        "attention.py",
        "batch_norm.py",
        "calibration.py",
        "configuration_detrpose.py",
        "configuration_ecvit.py",
        "denoising.py",
        "field_checks.py",
        "first_batch.py",
        "heads.py",
        "hybrid_encoder.py",
        "image_processing_detrpose.py",
        "images.py",
        "instances.py",
        "keypoint_confidence.py",
        "keypoint_schemas.py",
        "labels.py",
        "loss_detrpose.py",
        "model_card.py",
        "modeling_detrpose.py",
        "modeling_ecvit.py",
        "pipeline_keypoint_detection.py",
        "pose_targets.py",
        "position_encoding.py",
        "variants.py",
        "visibility.py",
    }
    config = DETRPoseConfig.from_pretrained(folder)
    assert config.d_model == 128 and config.keypoint_schema == CROWDPOSE_PERSON
    assert DETRPoseImageProcessor.from_pretrained(folder).keypoint_schema == CROWDPOSE_PERSON
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "official DETRPose-N weights for crowdpose" in card


def test_existing_output_is_left_alone(output, official, tmp_path, capsys):
    path = save_safetensors(official, tmp_path)
    command = ["--checkpoint", str(path), "--output", str(output), *CROWDPOSE_N]
    output.mkdir(parents=True)
    (output / "notes.txt").write_text("mine")
    assert convert_detrpose.main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert [file.name for file in output.iterdir()] == ["notes.txt"]
    (output / "notes.txt").unlink()  # an empty folder is as good as none
    assert convert_detrpose.main(command) == 0
    assert (output / "model.safetensors").exists()


def test_output_that_cannot_be_written(official, tmp_path, capsys):
    path = save_safetensors(official, tmp_path)
    for output in (path, path / "model"):  # a file; within a file
        assert convert_detrpose.main(["--checkpoint", str(path), "--output", str(output), *CROWDPOSE_N]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_interrupted(official, output, monkeypatch, capsys, tmp_path):
    path = save_safetensors(official, tmp_path)
    written = []

    def interrupt(error):
        def save_pretrained(self, folder):
            written.extend(file.name for file in folder.iterdir())
            raise error

        monkeypatch.setattr(DETRPoseImageProcessor, "save_pretrained", save_pretrained)

    command = ["--checkpoint", str(path), "--output", str(output), *CROWDPOSE_N]
    interrupt(OSError("no space left on device"))
    assert convert_detrpose.main(command) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "detrpose convert: error: no space left on device"
    assert "model.safetensors" in written
    assert not list(output.parent.glob("*"))
    interrupt(KeyboardInterrupt())
    assert convert_detrpose.main(command) == 130
    assert not list(output.parent.glob("*"))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("variant, dataset", [("n", "coco"), ("s", "crowdpose"), ("x", "coco")])
def test_wrong_variant_or_dataset(variant, dataset, official, refusal, tmp_path):
    path = save_safetensors(official, tmp_path)
    message = refusal(convert_detrpose, path, "--variant", variant, "--dataset", dataset)
    assert f"fits --variant n --dataset crowdpose, not --variant {variant} --dataset {dataset}" in message


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def also(**added):
    return lambda tensors: {**tensors, **{name.replace("__", "."): tensor for name, tensor in added.items()}}


ATTENTION = "transformer__decoder__layers__0__within_attn__in_proj_weight"


@pytest.mark.parametrize(
    "edit, problem",
    [
        (without(MARKER), "missing query_content.instance_embedding.weight"),
        (also(transformer__extra__weight=torch.ones(1)), "unused transformer.extra.weight"),
        (
            also(transformer__instance_embedding__weight=torch.ones(2, 128)),
            "query_content.instance_embedding.weight is (2, 128), expected (1, 128)",
        ),
        # joint projections that do not fall into three
        (also(**{ATTENTION: torch.ones(2, 128)}), "decoder.layers.0.within_attn.v_proj.weight is (0, 128)"),
        (also(**{ATTENTION: torch.tensor(1.0)}), "unused decoder.layers.0.within_attn.in_proj_weight"),
        (lambda tensors: {name: tensors[name] for name in [MARKER]}, "; and "),  # too much to list
    ],
)
def test_tensors_that_do_not_fit(edit, problem, official, refusal, tmp_path):
    message = refusal(convert_detrpose, save_safetensors(edit(official), tmp_path), *CROWDPOSE_N)
    assert "Against --variant n --dataset crowdpose: " in message and problem in message
    assert len(message) < 5000


def with_value(name, value, dtype=torch.float32):
    """Returns what changes the first number of a tensor, and its type."""

    def edit(tensors):
        tensor = tensors[name].to(dtype, copy=True)
        tensor.view(-1)[0] = value
        return {**tensors, name: tensor}

    return edit


SCALE, UP = "transformer.reg_scale", "transformer.up"
OTHER_MARKER = "query_content.instance_embedding.weight"


@pytest.mark.parametrize(
    "edit, problem",
    [
        (with_value(MARKER, math.nan), f"{OTHER_MARKER} has NaN or infinite values"),
        (with_value(MARKER, -math.inf), f"{OTHER_MARKER} has NaN or infinite values"),
        (with_value(MARKER, 1e300, torch.float64), f"{OTHER_MARKER} has values too large for float32, up to 1e+300"),
        (with_value(MARKER, 1, torch.int8), f"{OTHER_MARKER} is torch.int8, but weights are floating-point numbers"),
        (with_value(MARKER, 1j, torch.complex64), f"{MARKER} is complex"),
        (lambda tensors: {**tensors, MARKER: tensors[MARKER].to_sparse()}, f"{MARKER} is sparse"),
        (lambda tensors: {**tensors, MARKER: tensors[MARKER].to("meta")}, f"{MARKER} is without numbers (meta)"),
        (
            lambda tensors: {**tensors, MARKER: torch.quantize_per_tensor(tensors[MARKER], 0.1, 0, torch.qint8)},
            f"{MARKER} is quantized",
        ),
        # the weighting function of another configuration
        (with_value(SCALE, 8, torch.int64), f"{SCALE} is [8], but the variant has 4.0"),
        (with_value(UP, 0.25), f"{UP} is [0.25], but the variant has 0.5"),
        (with_value(UP, math.nan), f"{UP} is [nan]"),
        (lambda tensors: {**tensors, UP: torch.ones(2)}, f"{UP} is [1.0, 1.0]"),
        # the same tensor by our name and by the official one
        (lambda tensors: {**tensors, OTHER_MARKER: tensors[MARKER]}, f"{OTHER_MARKER} are two names for one tensor"),
    ],
)
def test_numbers_that_are_no_weights(edit, problem, official, refusal, tmp_path):
    assert problem in refusal(convert_detrpose, LAYOUTS["bare"](edit(official), tmp_path), *CROWDPOSE_N)


@pytest.mark.parametrize("edit", [with_value(SCALE, 4, torch.int64), with_value(UP, 0.5), without(SCALE, UP)])
def test_the_variants_weighting_function(edit, official, convert, tmp_path):
    assert OUR_MARKER in convert(convert_detrpose, LAYOUTS["bare"](edit(official), tmp_path), *CROWDPOSE_N)


class Foreign:
    """Whoever loads it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, plain_pickle])
def test_foreign_code_is_not_run(save, refusal, tmp_path):
    save({"epoch": 3, "args": Foreign(tmp_path / "proof")}, tmp_path / "checkpoint.pth")
    message = refusal(convert_detrpose, tmp_path / "checkpoint.pth", *CROWDPOSE_N)
    assert "io.open in it would run code" in message
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "name, content",
    [
        ("empty.pth", b""),
        ("text.pth", b"This is not a checkpoint.\nNor is this.\n"),
        ("page.pth", b"<!DOCTYPE html>\n<html></html>\n"),
        ("appends.pth", b"aaaa"),  # pickle's word for adding to a list that is not there
        ("empty.safetensors", b""),
        ("text.safetensors", b"This is not a checkpoint.\nNor is this.\n"),
    ],
)
def test_broken_files(name, content, refusal, tmp_path):
    (tmp_path / name).write_bytes(content)
    for script, options in ((convert_detrpose, CROWDPOSE_N), (convert_dfine, ("--variant", "n"))):
        assert f"{name}: not a readable" in refusal(script, tmp_path / name, *options)


@pytest.mark.parametrize("layout", ["last", "safetensors"])
def test_truncated_files(layout, official, refusal, tmp_path):
    path = LAYOUTS[layout](official, tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "not a readable" in refusal(convert_detrpose, path, *CROWDPOSE_N)


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], torch.zeros(1), {}, {"lr": 0.1}, {"model": [1, 2]}, {"model": {}}, {1: torch.zeros(1)}],
)
def test_no_tensors_by_name(content, refusal, tmp_path):
    torch.save(content, tmp_path / "checkpoint.pth")
    assert "tensors by name" in refusal(convert_detrpose, tmp_path / "checkpoint.pth", *CROWDPOSE_N)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"notes.txt": "no weights"}, "no .safetensors file"),
        ({"model.safetensors.index.json": "{"}, "not a readable index"),
        ({"model.safetensors.index.json": "[]"}, "not a readable index"),
        ({"model.safetensors.index.json": json.dumps({"weight_map": None})}, "not a readable index"),
        ({"model.safetensors.index.json": "[" * 100_000}, "not a readable index"),
        ({"model.safetensors.index.json": json.dumps({"weight_map": {"a": 5}})}, "names of files, but got {5}"),
        ({"model.safetensors.index.json": json.dumps({"weight_map": {"a": None}})}, "names of files, but got {None}"),
        ({"model.safetensors.index.json": json.dumps({"weight_map": {"a": ["b"]}})}, "not a readable index"),
        (
            {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "../b"}})},
            "names of files, but got {'../b'}",
        ),
        ({"model.safetensors.index.json": json.dumps({"weight_map": {"a": "lost.safetensors"}})}, "lost.safetensors"),
    ],
)
def test_broken_folders(files, message, refusal, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    for name, text in files.items():
        (tmp_path / "checkpoint" / name).write_text(text)
    assert message in refusal(convert_detrpose, tmp_path / "checkpoint", *CROWDPOSE_N)


def test_one_tensor_in_two_files(official, refusal, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(official, folder / "a.safetensors")
    save_file({MARKER: official[MARKER]}, folder / "b.safetensors")
    message = refusal(convert_detrpose, folder, *CROWDPOSE_N)
    assert f"{MARKER} is both in a.safetensors and in b.safetensors" in message


@pytest.mark.parametrize("output", ["checkpoint", "checkpoint/model.safetensors"])
def test_the_output_is_not_the_checkpoint(output, official, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(official, folder / "model.safetensors")
    before = (folder / "model.safetensors").read_bytes()
    options = ["--checkpoint", str(folder), "--output", str(tmp_path / output), *CROWDPOSE_N]
    assert convert_detrpose.main(options) == 1
    assert "exists already" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("source", ["lost.pth", "weights/lost.pth", "weights/lost.safetensors", "a/b/c"])
def test_missing_path(source, refusal, monkeypatch):
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    assert refusal(convert_detrpose, source, *CROWDPOSE_N) == f"{source}: no such file or folder."


# ---------------------------------------------------------------- the network


def test_hub_id(official, convert, refusal, monkeypatch, tmp_path):
    requests = []

    def download(repo_id, allow_patterns):
        requests.append(repo_id)
        if repo_id == "nobody/nothing":
            raise OSError("404 Client Error.\nRepository not found.")
        assert not any(pattern.endswith((".bin", ".pth")) for pattern in allow_patterns)
        return str(save_shards(official, tmp_path))

    monkeypatch.setattr(checkpoints, "snapshot_download", download)
    assert "404 Client Error." in refusal(convert_detrpose, "nobody/nothing", *CROWDPOSE_N)
    convert(convert_detrpose, "somebody/detrpose-v1.5", *CROWDPOSE_N)
    assert requests == ["nobody/nothing", "somebody/detrpose-v1.5"]


def test_push(official, converted, convert, monkeypatch, tmp_path):
    calls = []

    def upload(repo_id, folder_path, commit_message):
        calls.append(("upload", repo_id, {path.name for path in Path(folder_path).iterdir()}))

    monkeypatch.setattr(saving, "create_repo", lambda repo_id, exist_ok: calls.append(("create", repo_id)))
    monkeypatch.setattr(saving, "upload_folder", upload)
    path = save_safetensors(official, tmp_path)
    convert(convert_detrpose, path, *CROWDPOSE_N, "--push-to-hub", "somebody/detrpose-n")
    files = {path.name for path in converted(CASE.name).iterdir()}
    assert calls == [("create", "somebody/detrpose-n"), ("upload", "somebody/detrpose-n", files)]
    card = (tmp_path / "results" / "model" / "README.md").read_text(encoding="utf-8")
    assert 'model="somebody/detrpose-n"' in card


def test_failed_push_keeps_the_folder(official, output, monkeypatch, capsys, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("401 Client Error.\nLog in first.")

    monkeypatch.setattr(saving, "create_repo", fail)
    path = save_safetensors(official, tmp_path)
    command = ["--checkpoint", str(path), "--output", str(output), *CROWDPOSE_N, "--push-to-hub", "somebody/model"]
    assert convert_detrpose.main(command) == 1
    assert f"{output} is written, but pushing to somebody/model failed: 401 Client" in capsys.readouterr().err
    assert (output / "model.safetensors").exists()


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize("script", [convert_detrpose, convert_dfine])
def test_help(script, capsys):
    with pytest.raises(SystemExit) as exit:
        script.main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    options = ("--variant", "--dataset", "--output", "--checkpoint", "--weights", "--push-to-hub")
    assert all(option in text for option in options) and "(default: coco)" in text


@pytest.mark.parametrize("script", [convert_detrpose, convert_dfine])
def test_unknown_variant(script, capsys):
    with pytest.raises(SystemExit) as exit:
        script.main(["--variant", "xxl", "--checkpoint", "a.pth", "--output", "b"])
    assert exit.value.code == 2
    assert re.search(r"--variant: invalid choice: 'xxl' .*n.*s.*m.*l.*x", capsys.readouterr().err)


def test_as_a_script(official, converted, tmp_path):
    save_safetensors(official, tmp_path)
    options = [*CROWDPOSE_N, "--checkpoint", "checkpoint.safetensors", "--output", "model"]
    process = subprocess.run(
        [sys.executable, str(CONVERSION / "convert_detrpose.py"), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CONVERSION.parent / "src")},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "652 tensors, of which not needed: transformer." in process.stderr and "wrote model" in process.stderr
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert_same(tensors, load_file(converted(CASE.name) / "model.safetensors"))


@pytest.mark.parametrize(
    "script, name", [("convert_detrpose.py", "detrpose convert"), ("convert_dfine.py", "detrpose convert-dfine")]
)
def test_exit_code(script, name, monkeypatch, capsys, tmp_path):
    options = ["--variant", "n", "--checkpoint", "lost.pth", "--output", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", [script, *options])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(CONVERSION / script), run_name="__main__")
    assert exit.value.code == 1
    assert capsys.readouterr() == ("", f"{name}: error: lost.pth: no such file or folder.\n")
