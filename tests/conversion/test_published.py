"""Downloading the published weights, from a stand-in for the Hub and for GitHub."""

import io
import socket
import tempfile
import time
from functools import partial

import pytest
import torch
from huggingface_hub import constants, hf_hub_url
from safetensors.torch import load_file, save

import reference
from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands import convert
from transformers_detrpose.conversion import published
from weights_server import serve_weights

CASE = "detrpose-n-crowdpose"
HUB = "/SebasJanampa/DETRPose_N_CROWDPOSE/resolve/main/model.safetensors"
RELEASE = "/release/detrpose_hgnetv2_n_crowdpose.pth"


def safetensors_of(case):
    return save(reference.load_case(case).state_dict())


def pth_of(case):
    file = io.BytesIO()
    torch.save({"model": reference.load_case(case).state_dict()}, file)
    return file.getvalue()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server in place of the Hub and of GitHub, with an empty cache and no temporary files before and after."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve_weights() as server:
        monkeypatch.setattr(published, "ECPOSE_RELEASE", f"{server.url}/edgecrafter")
        monkeypatch.setattr(published, "hf_hub_url", partial(hf_hub_url, endpoint=server.url))
        monkeypatch.setattr(published, "RELEASE", f"{server.url}/release")
        yield server
    assert not list((tmp_path / "temporary").iterdir())


def gets(server):
    return [request.removeprefix("GET ") for request in server.requests if request.startswith("GET ")]


def assert_same_weights(model, folder):
    expected = load_file(folder / "model.safetensors")
    tensors = model.state_dict()
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "variant, dataset, repository, file",
    [
        ("n", "coco", "DETRPose_N_COCO", "detrpose_hgnetv2_n.pth"),
        ("x", "crowdpose", "DETRPose_X_CROWDPOSE", "detrpose_hgnetv2_x_crowdpose.pth"),
    ],
)
def test_addresses(variant, dataset, repository, file):
    assert published.published_urls(variant, dataset) == [
        f"https://huggingface.co/SebasJanampa/{repository}/resolve/main/model.safetensors",
        f"https://github.com/SebastianJanampa/DETRPose/releases/download/model_weights/{file}",
    ]


def test_the_hub_comes_first(server, converted):
    server.files = {HUB: safetensors_of(CASE), RELEASE: pth_of(CASE)}
    assert_same_weights(published.download_model("n", "crowdpose"), converted(CASE))
    assert gets(server) == [HUB]


@pytest.mark.parametrize(
    "case, file",
    [("detrpose-s-coco", "detrpose_hgnetv2_s.pth"), ("detrpose-n-crowdpose", "detrpose_hgnetv2_n_crowdpose.pth")],
)
def test_the_release_comes_second(case, file, server, converted, tmp_path):
    server.files = {f"/release/{file}": pth_of(case)}
    _, variant, dataset = case.split("-")
    output = tmp_path / "model"
    assert convert.main(["--variant", variant, "--dataset", dataset, "--output", str(output)]) == 0
    assert_same_weights(DETRPoseForPoseEstimation.from_pretrained(output), converted(case))
    assert gets(server) == [f"/release/{file}"]


def test_ecpose_comes_from_its_release(server, converted, tmp_path):
    """From the release of known license, and not from the Hub."""
    server.files = {"/edgecrafter/ecpose_s.pth": pth_of("ecpose-s-coco")}
    output = tmp_path / "model"
    assert convert.main(["--variant", "ecpose-s", "--output", str(output)]) == 0
    assert_same_weights(DETRPoseForPoseEstimation.from_pretrained(output), converted("ecpose-s-coco"))
    assert "license: apache-2.0" in (output / "README.md").read_text(encoding="utf-8")
    assert published.published_folder("ecpose-s").name == "ecpose-s-coco"


def test_no_ecpose_for_crowdpose(server, tmp_path, capsys):
    command = ["--variant", "ecpose-l", "--dataset", "crowdpose", "--output", str(tmp_path / "model")]
    assert convert.main(command) == 1
    assert "no ECPose-L for crowdpose is published" in capsys.readouterr().err
    assert not server.requests


@pytest.mark.parametrize("damage", ["cut off", "page", "other variant"])
def test_a_broken_download_counts_as_none(damage, server, converted):
    content = {"page": b"<!DOCTYPE html>", "other variant": safetensors_of("detrpose-s-coco")}
    server.files = {HUB: content.get(damage, safetensors_of(CASE)), RELEASE: pth_of(CASE)}
    server.cut_off = {HUB} if damage == "cut off" else set()
    assert_same_weights(published.download_model("n", "crowdpose"), converted(CASE))
    assert gets(server) == [HUB, RELEASE]


def test_all_downloads_are_broken(server, tmp_path):
    server.files = {HUB: safetensors_of(CASE), RELEASE: pth_of(CASE)}
    server.cut_off = {HUB, RELEASE}
    with pytest.raises(OSError, match=r"ended after \d+ of \d+ bytes; .*ended after \d+ of \d+ bytes"):
        published.published_folder("n", "crowdpose")
    assert not (tmp_path / "cache").exists()


def test_a_source_that_does_not_answer_is_passed_over(server, converted, monkeypatch):
    monkeypatch.setattr(published, "PATIENCE", 0.5)
    server.files, server.silent = {RELEASE: pth_of(CASE)}, {HUB}
    start = time.monotonic()
    assert_same_weights(published.download_model("n", "crowdpose"), converted(CASE))
    assert time.monotonic() - start < published.STALL
    server.silent = {HUB, RELEASE}
    with pytest.raises(OSError, match=r"no answer within 0\.5 seconds.*no answer within 0\.5 seconds"):
        published.download_model("n", "crowdpose")


def test_no_network(server, monkeypatch, tmp_path, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(published, "hf_hub_url", partial(hf_hub_url, endpoint=nobody))
    monkeypatch.setattr(published, "RELEASE", nobody)
    output = tmp_path / "models" / "model"
    assert convert.main(["--variant", "n", "--dataset", "crowdpose", "--output", str(output)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "DETRPose_N_CROWDPOSE" in line and "detrpose_hgnetv2_n_crowdpose.pth" in line
    assert "refused" in line and "--checkpoint" in line
    assert not output.parent.exists()


def test_offline(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.files = {HUB: safetensors_of(CASE)}
    with pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        published.published_folder("n", "crowdpose")
    assert not server.requests


class TestCache:
    def test_it_is_filled_once(self, server, converted, monkeypatch, tmp_path):
        server.files = {HUB: safetensors_of(CASE)}
        folder = published.published_folder("n", "crowdpose")
        assert folder.is_relative_to(tmp_path / "cache")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what is there needs no network
        assert published.published_folder("n", "crowdpose") == folder
        assert gets(server) == [HUB]
        assert_same_weights(DETRPoseForPoseEstimation.from_pretrained(folder), converted(CASE))

    def test_an_interrupted_conversion_leaves_nothing(self, server, monkeypatch, tmp_path):
        def interrupt(self, folder):
            raise KeyboardInterrupt

        server.files = {HUB: safetensors_of(CASE)}
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(DETRPoseImageProcessor, "save_pretrained", interrupt)
            published.published_folder("n", "crowdpose")
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert (published.published_folder("n", "crowdpose") / "model.safetensors").exists()
