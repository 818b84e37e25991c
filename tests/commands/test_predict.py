"""The prediction command, end to end on a tiny random model and images and videos made here."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import supervision as sv
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save

import reference
from saved_model import NUM_QUERIES, tiny_config
from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands import predict
from transformers_detrpose.conversion import published
from transformers_detrpose.conversion.checkpoints import published_tensors
from transformers_detrpose.images import load_rgb_image
from transformers_detrpose.loading import DEMONSTRATION_MODEL, SAMPLE_PICTURE
from transformers_detrpose.prediction import batches, image_files, models, paths
from transformers_detrpose.synthetic.pictures import generate_picture
from weights_server import serve_weights


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    config = tiny_config()
    folder = tmp_path_factory.mktemp("model")
    DETRPoseForPoseEstimation(config).save_pretrained(folder)
    processor = DETRPoseImageProcessor(size={"height": 64, "width": 64}, keypoint_schema=config.keypoint_schema)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def command(model_dir, tmp_path, device):
    """Runs the command with the tiny model, every pose kept, and `tmp_path / "out"` for the output."""

    def run(*inputs, output=tmp_path / "out", options=()):
        inputs = [str(path) for path in inputs]
        options = ["--threshold", "0", "--device", str(device), *options]
        return predict.main(["--model", str(model_dir), "--input", *inputs, "--output", str(output), *options])

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_image(path, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(**kwargs)).save(path)
    return path


def save_video(path, num_frames=5, width=64, height=48, fps=12.5, codec="mp4v"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with sv.VideoSink(str(path), sv.VideoInfo(width, height, fps), codec=codec) as sink:
        for index in range(num_frames):
            sink.write_frame(np.full((height, width, 3), 10 * index, dtype=np.uint8))
    return path


def read_records(out):
    return json.loads((out / "predictions.json").read_text(encoding="utf-8"))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestImages:
    def test_records_are_what_the_model_says(self, command, model_dir, tmp_path, out):
        path = save_image(tmp_path / "a.png")
        assert command(path) == 0
        model = DETRPoseForPoseEstimation.from_pretrained(model_dir).eval()
        processor = DETRPoseImageProcessor.from_pretrained(model_dir)
        with torch.no_grad():
            outputs = model(**processor(images=Image.open(path), return_tensors="pt"))
        (expected,) = processor.post_process_keypoint_detection(outputs, threshold=0, target_sizes=[(40, 60)])

        records = read_records(out)
        assert len(records) == NUM_QUERIES
        for index, record in enumerate(records):
            keypoints = np.reshape(record["keypoints"], (17, 3))
            x1, y1, x2, y2 = expected["boxes"][index].tolist()
            assert record["image_id"] == record["file_name"] == "a.png"
            assert record["category_id"] == expected["labels"][index]
            assert record["score"] == pytest.approx(float(expected["scores"][index]), abs=1e-5)
            assert keypoints[:, :2] == pytest.approx(expected["keypoints"][index].numpy(), abs=1e-3)
            assert keypoints[:, 2] == pytest.approx(expected["keypoint_scores"][index].numpy(), abs=1e-3)
            assert record["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)

    def test_picture_has_the_poses(self, command, tmp_path, out):
        path = tmp_path / "a.png"
        Image.new("RGB", (60, 40), "white").save(path)
        assert command(path) == 0
        assert Image.open(out / "a.png").size == (60, 40)
        assert (np.asarray(Image.open(out / "a.png")) != 255).any()
        assert (np.asarray(Image.open(path)) == 255).all()

    def test_uncertainty_is_drawn(self, tmp_path, out):
        # By the demonstration model: all keypoints of an untrained one coincide.
        picture = load_rgb_image(SAMPLE_PICTURE)
        picture.save(tmp_path / "a.png")
        options = ["--model", DEMONSTRATION_MODEL, "--input", tmp_path / "a.png", "--output", out]
        assert predict.main([*map(str, options), "--device", "cpu", "--uncertainty"]) == 0
        predictor = models.Predictor(str(DEMONSTRATION_MODEL), "cpu", torch.float32, 0.5, 0.2)
        without = predictor.draw(picture, predictor([picture])[0])
        difference = abs(np.asarray(without).astype(int) - np.asarray(Image.open(out / "a.png"))).sum(axis=-1)
        assert (difference > 30).sum() > 1000

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
    def test_modes(self, command, tmp_path, out, mode):
        Image.fromarray(noise()).convert(mode).save(tmp_path / "a.png")
        assert command(tmp_path / "a.png") == 0
        assert Image.open(out / "a.png").mode == "RGB"
        assert len(read_records(out)) == NUM_QUERIES

    @pytest.mark.parametrize(("dtype", "name"), [(np.uint16, "a.png"), (np.uint16, "a.tif"), (np.int32, "a.tif")])
    def test_16_bits_are_scaled(self, command, tmp_path, out, dtype, name):
        Image.fromarray(np.full((40, 60), 257 * 128, dtype=dtype)).save(tmp_path / name)
        assert command(tmp_path / name, options=["--threshold", "1"]) == 0
        (written,) = out.glob("a.*")
        assert (np.asarray(Image.open(written)) == (128, 128, 128)).all()

    @pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
    def test_cmyk(self, command, tmp_path, out, name):
        Image.fromarray(noise()).convert("CMYK").save(tmp_path / name)
        assert command(tmp_path / name) == 0
        assert Image.open(out / {"a.jpg": "a.jpg", "a.tif": "a.tif.png"}[name]).mode == "RGB"

    def test_rotated_by_exif(self, command, tmp_path, out):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned by a quarter
        Image.fromarray(noise(40, 60)).save(tmp_path / "a.jpg", exif=exif)
        assert command(tmp_path / "a.jpg") == 0
        written = Image.open(out / "a.jpg")
        assert written.size == (40, 60) and not written.getexif().get(0x0112)

    def test_nobody(self, command, tmp_path, out):
        path = save_image(tmp_path / "a.png")
        assert command(path, options=["--threshold", "1"]) == 0
        assert read_records(out) == []
        assert (np.asarray(Image.open(out / "a.png")) == noise()).all()

    def test_batches_of_different_sizes(self, command, tmp_path, out, capsys):
        for index in range(5):
            save_image(tmp_path / "in" / f"{index}.png", height=20 + index, width=50 - index, seed=index)
        assert command(tmp_path / "in", options=["--batch-size", "2"]) == 0
        in_batches = read_records(out)
        assert [record["image_id"] for record in in_batches] == np.repeat(range(5), NUM_QUERIES).tolist()
        assert f"{5 * NUM_QUERIES} poses in 5 images" in capsys.readouterr().out
        assert command(tmp_path / "in", options=["--batch-size", "1"]) == 0
        for together, alone in zip(in_batches, read_records(out), strict=True):
            assert together["keypoints"] == pytest.approx(alone["keypoints"], abs=1e-2)

    @pytest.mark.parametrize("pixels, sizes", [(60 * 40, [1, 1, 1, 1]), (2 * 60 * 40, [2, 2]), (2**24, [4])])
    def test_batches_shrink_for_large_images(self, command, monkeypatch, tmp_path, out, pixels, sizes):
        monkeypatch.setattr(batches, "MAX_BATCH_PIXELS", pixels)
        seen, predicted = [], models.Predictor.__call__
        count = lambda self, images: seen.append(len(images)) or predicted(self, images)  # noqa: E731
        monkeypatch.setattr(models.Predictor, "__call__", count)
        for index in range(4):
            save_image(tmp_path / "in" / f"{index}.png")
        assert command(tmp_path / "in") == 0
        assert seen == sizes
        assert len(read_records(out)) == 4 * NUM_QUERIES

    def test_oversized(self, command, monkeypatch, tmp_path, out, capsys):
        """One line for each, without decoding, and an option that raises the limit."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restored after the test
        save_image(tmp_path / "in" / "small.png")
        save_image(tmp_path / "in" / "large.png", height=50, width=60)  # Pillow would warn
        save_image(tmp_path / "in" / "huge.png", height=100, width=60)  # Pillow would refuse it
        assert command(tmp_path / "in", options=["--max-pixels", "2400"]) == 1
        printed = capsys.readouterr().err
        lines = [line for line in printed.splitlines() if "cannot read image" in line]
        assert len(lines) == 2 and all("more than 2400 pixels, the limit: raise it by --max-pixels" in x for x in lines)
        assert "DecompressionBomb" not in printed
        assert {record["file_name"] for record in read_records(out)} == {"small.png"}
        assert command(tmp_path / "in", options=["--max-pixels", "6000"]) == 0

    @pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
    def test_one_frame_of_an_animation_is_taken(self, command, tmp_path, out, capsys, suffix):
        first, *others = (Image.fromarray(noise(seed=index)) for index in range(3))
        first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others)
        assert command(tmp_path / f"a.{suffix}") == 0
        assert len(read_records(out)) == NUM_QUERIES
        assert f"a.{suffix}: the first of 3 frames or pages is taken" in capsys.readouterr().err

    @pytest.mark.skipif(os.name == "nt", reason="needs Unix signals")
    @pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
    def test_interrupted(self, command, monkeypatch, tmp_path, out, name, code):
        """What was done before Ctrl-C, or a request to end, is written whole, and nothing else is left."""
        seen = []

        def interrupt_at_the_third(path):
            seen.append(path)
            if len(seen) == 3:
                signal.raise_signal(getattr(signal, name))
            return load_rgb_image(path)

        monkeypatch.setattr(image_files, "load_rgb_image", interrupt_at_the_third)
        for index in range(4):
            save_image(tmp_path / "in" / f"{index}.png")
        try:
            assert command(tmp_path / "in", options=["--batch-size", "1"]) == code
        except SystemExit as exit:
            assert exit.code == code
        assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "predictions.json"]
        assert [record["image_id"] for record in read_records(out)] == np.repeat([0, 1], NUM_QUERIES).tolist()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision(self, command, tmp_path, out, dtype):
        assert command(save_image(tmp_path / "a.png"), options=["--dtype", dtype]) == 0
        assert len(read_records(out)) == NUM_QUERIES


class TestNames:
    def test_folders_keep_their_structure(self, command, tmp_path, out):
        for name in ("b/2.png", "a/1.png", "a/deep/1.jpg", ".hidden/3.png", "a/.4.png"):
            save_image(tmp_path / "in" / name)
        (tmp_path / "in" / "notes.txt").write_text("not an image")
        assert command(tmp_path / "in") == 0
        files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
        assert files == ["a/1.png", "a/deep/1.jpg", "b/2.png", "predictions.json"]
        assert {record["image_id"] for record in read_records(out)} == set(files[:3])  # 1 is not one image

    def test_same_names_in_several_inputs(self, command, tmp_path, out):
        save_image(tmp_path / "x" / "a.png")
        save_image(tmp_path / "y" / "a.png")
        assert command(tmp_path / "x", tmp_path / "y" / "a.png", tmp_path / "y") == 0
        assert (out / "x" / "a.png").exists() and (out / "y" / "a.png").exists()
        assert len(read_records(out)) == 2 * NUM_QUERIES  # what is given twice is predicted once

    def test_same_stem(self, command, tmp_path, out):
        for name in ("a.png", "a.jpg", "a.gif", "a.tiff"):
            save_image(tmp_path / "in" / name)
        assert command(tmp_path / "in") == 0
        assert {path.name for path in out.glob("a*")} == {"a.png", "a.jpg", "a.gif.png", "a.tiff.png"}

    def test_not_ascii(self, command, tmp_path, out):
        save_image(tmp_path / "Fotos für später" / "写真 1.png")
        save_video(tmp_path / "Fotos für später" / "фильм.mp4", num_frames=2)
        assert command(tmp_path / "Fotos für später", output=out / "ergebnis ü") == 0
        assert {record["file_name"] for record in read_records(out / "ergebnis ü")} == {"写真 1.png"}
        assert (out / "ergebnis ü" / "写真 1.png").exists()
        assert len(read_lines(out / "ergebnis ü" / "фильм.mp4.jsonl")) == 2

    @pytest.mark.parametrize(
        ("names", "ids"),
        [
            (["000000000785.jpg", "val/12.png"], [785, 12]),
            (["1.jpg", "a.jpg"], ["1.jpg", "a.jpg"]),
            (["1.jpg", "-2.jpg"], ["1.jpg", "-2.jpg"]),
            (["x/1.jpg", "y/001.jpg"], ["x/1.jpg", "y/001.jpg"]),  # one number for two images
        ],
    )
    def test_image_ids(self, names, ids):
        assert list(paths.image_ids(names).values()) == ids

    @pytest.mark.parametrize(
        ("names", "ids"),
        [
            (["a.jpg"], [17]),
            (["785.jpg"], [3]),  # and not the number in the name
            (["x/b.jpg", "y/b.jpg"], [4, 5]),  # the same name in two folders
            (["c.jpg"], [6]),  # given without its folder
            (["z/a.jpg"], [17]),  # given with one more folder
        ],
    )
    def test_image_ids_of_annotations(self, names, ids):
        file_names = {17: "a.jpg", 3: "785.jpg", 4: "x/b.jpg", 5: "y/b.jpg", 6: "train/c.jpg"}
        images = [{"id": image_id, "file_name": name} for image_id, name in file_names.items()]
        assert list(paths.image_ids(names, images).values()) == ids

    @pytest.mark.parametrize(
        ("name", "problem"),
        [("new.jpg", "no image named new.jpg"), ("b.jpg", "several images named b.jpg")],
    )
    def test_images_that_annotations_do_not_tell(self, name, problem):
        images = [{"id": 4, "file_name": "x/b.jpg"}, {"id": 5, "file_name": "y/b.jpg"}, {"id": 6}]
        with pytest.raises(ValueError, match=problem):
            paths.image_ids([name], images)

    def test_pycocotools_loads_the_records(self, command, tmp_path, out):
        coco = pytest.importorskip("pycocotools.coco")
        content = {
            "images": [{"id": 17, "file_name": "a.png", "height": 40, "width": 60}],
            "categories": [{"id": 1, "name": "person", "keypoints": list(tiny_config().keypoint_schema.names)}],
            "annotations": [],
        }
        (tmp_path / "ids.json").write_text(json.dumps(content))
        options = ["--annotations", str(tmp_path / "ids.json")]
        assert command(save_image(tmp_path / "a.png"), options=options) == 0
        assert len(coco.COCO(tmp_path / "ids.json").loadRes(str(out / "predictions.json")).anns) == NUM_QUERIES

    def test_output_within_the_input(self, command, tmp_path):
        save_image(tmp_path / "in" / "1.png")
        for _ in range(2):  # the second time without the pictures of the first
            assert command(tmp_path / "in", output=tmp_path / "in" / "out") == 0
        assert not (tmp_path / "in" / "out" / "out").exists()


class TestWithoutModel:
    @pytest.fixture(autouse=True)
    def empty_cache(self, monkeypatch, tmp_path):
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))

    def test_the_demonstration_model_finds_the_figures_of_the_sample_picture(self, out, capsys):
        """What the README's first command does without network; the labels are those of the generated picture."""
        assert predict.main(["--output", str(out), "--device", "cpu"]) == 0
        (note,) = [line for line in capsys.readouterr().err.splitlines() if "demonstration model" in line]
        assert "HF_HUB_OFFLINE" in note
        assert (out / SAMPLE_PICTURE.name).stat().st_size > 10_000
        found = json.loads((out / "predictions.json").read_text())
        picture, expected = generate_picture(7, 16, 640, max_people=2, min_height=0.6, plain=True, upright=True)
        difference = np.asarray(picture, dtype=float) - np.asarray(Image.open(SAMPLE_PICTURE))
        assert np.abs(difference).mean() < 2  # that of storing it as JPEG
        assert len(found) == len(expected) == 2
        for annotation in expected:
            truth = np.array(annotation["keypoints"]).reshape(-1, 3)[:, :2]
            poses = [np.array(pose["keypoints"]).reshape(-1, 3)[:, :2] for pose in found]
            errors = [np.median(np.linalg.norm(pose - truth, axis=1)) for pose in poses]
            assert min(errors) < 0.05 * np.sqrt(annotation["area"])
        assert sum(path.stat().st_size for path in DEMONSTRATION_MODEL.iterdir()) < 10e6

    @pytest.mark.parametrize("damage", ["cut off", "missing"])
    def test_the_demonstration_model_replaces_a_broken_download(self, monkeypatch, tmp_path, out, capsys, damage):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with serve_weights() as server:
            monkeypatch.setattr(published, "published_urls", lambda variant, dataset: [f"{server.url}/weights.pth"])
            if damage == "cut off":
                server.files = {"/weights.pth": bytes(1000)}
                server.cut_off = {"/weights.pth"}
            assert predict.main(["--output", str(out), "--device", "cpu"]) == 0
        (note,) = [line for line in capsys.readouterr().err.splitlines() if "demonstration model" in line]
        assert "/weights.pth" in note and ("500 of 1000 bytes" if damage == "cut off" else "404") in note
        assert len(read_records(out)) == 2
        assert not (tmp_path / "cache").exists()

    def test_published_weights_are_downloaded(self, tmp_path, out):
        """As a user does it: the command in a process of its own, which finds the Hub where HF_ENDPOINT says."""
        weights = "/SebasJanampa/DETRPose_N_COCO/resolve/main/model.safetensors"
        options = ["--input", str(save_image(tmp_path / "1.png")), "--output", str(out), "--threshold", "0"]
        with serve_weights() as server:
            server.files = {weights: save(official_coco_n())}
            settings = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
            process = subprocess.run(
                [sys.executable, "-m", "transformers_detrpose", "predict", "--device", "cpu", *options],
                env={**os.environ, **settings, "no_proxy": "127.0.0.1"},
                capture_output=True,
                text=True,
            )
            assert process.returncode == 0, process.stderr
            assert [request for request in server.requests if request.startswith("GET")] == [f"GET {weights}"]
        (note,) = [line for line in process.stderr.splitlines() if "DETRPose-N" in line]
        (folder,) = (tmp_path / "home" / "assets" / "transformers-detrpose").iterdir()
        assert note == f"Using the published DETRPose-N, converted and kept in {folder}"
        assert "652 tensors" not in process.stderr  # what converting has to say is for those who convert
        assert len(read_records(out)) == 60


def official_coco_n():
    """Returns a checkpoint of DETRPose-N for COCO in the official layout: that for CrowdPose with other shapes."""
    case = reference.load_case("detrpose-n-crowdpose")
    tensors = case.state_dict()
    expected = published_tensors("n", "coco")
    for name, tensor in tensors.items():
        ours = case.our_names(name)[0]
        if ours in expected and "in_proj" not in name and tensor.shape != expected[ours].shape:
            tensors[name] = torch.from_numpy(reference.make_tensor(name, list(expected[ours].shape)))
    return tensors


class TestErrors:
    def test_broken_image_among_others(self, command, tmp_path, out, capsys):
        save_image(tmp_path / "in" / "1.png")
        (tmp_path / "in" / "2.png").write_text("not an image")
        cut = save_image(tmp_path / "in" / "3.png")
        cut.write_bytes(cut.read_bytes()[:1000])
        save_image(tmp_path / "in" / "4.png")
        assert command(tmp_path / "in", options=["--batch-size", "2"]) == 1
        printed = capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if "cannot read image" in line]
        assert len(errors) == 2 and "2.png" in errors[0] and "3.png" in errors[1]
        assert {record["image_id"] for record in read_records(out)} == {1, 4}
        assert "2 of 4 inputs written" in printed.out

    def test_all_broken(self, command, tmp_path, out):
        (tmp_path / "a.png").write_text("not an image")
        assert command(tmp_path / "a.png") == 1
        assert read_records(out) == []

    @pytest.mark.parametrize(
        ("inputs", "options", "message"),
        [
            (["missing.png"], [], "missing.png: no such file or folder"),
            (["empty"], [], "no images or videos in"),
            (["in"], ["--output", "file"], "--output file is a file, not a folder"),
            (["in"], ["--output", "in"], "the result for 1.png would overwrite"),
            (["in"], ["--output", "empty", "--annotations", "empty/predictions.json"], "would overwrite an input"),
            (["in", "empty/predictions.json"], ["--output", "empty"], "would overwrite an input"),
            (["in"], ["--annotations", "empty/predictions.json"], "not a JSON file"),
            (["in"], ["--model", "missing"], "there is no model missing: no such folder"),
            (["in"], ["--model", "/missing/too/"], "there is no model /missing/too/: no such folder"),
            (["in"], ["--model", "empty"], "cannot load the configuration of empty"),
            (["in"], ["--model", "n"], "HF_HUB_OFFLINE"),
            (["in"], ["--device", "teapot"], "--device teapot:"),
        ],
    )
    def test_one_line(self, command, monkeypatch, tmp_path, capsys, inputs, options, message):
        monkeypatch.chdir(tmp_path)
        save_image(tmp_path / "in" / "1.png")
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "predictions.json").write_text("x")
        (tmp_path / "file").write_text("a file")
        before = (tmp_path / "in" / "1.png").read_bytes()
        assert command(*inputs, options=options) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1 and printed.err.startswith("detrpose predict: error: ")
        assert message in printed.err
        assert (tmp_path / "in" / "1.png").read_bytes() == before

    def test_another_kind_of_model(self, command, tmp_path, capsys):
        from transformers import SuperPointConfig, SuperPointForKeypointDetection, SuperPointImageProcessor

        SuperPointForKeypointDetection(SuperPointConfig()).save_pretrained(tmp_path / "other")
        SuperPointImageProcessor().save_pretrained(tmp_path / "other")
        assert command(save_image(tmp_path / "a.png"), options=["--model", str(tmp_path / "other")]) == 1
        assert "is a superpoint model, not a detrpose model" in capsys.readouterr().err

    @pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
    def test_links_do_not_hide_what_would_be_overwritten(self, command, tmp_path):
        path = save_image(tmp_path / "in" / "1.png")
        (tmp_path / "link").symlink_to(tmp_path / "in")
        before = path.read_bytes()
        assert command(path, output=tmp_path / "link") == 1
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "m", "--input", "a.png", "--output", "out", "--threshold", "2"], "from 0 to 1"),
            (["--model", "m", "--input", "a.png", "--output", "out", "--threshold", "x"], "--threshold"),
            (["--model", "m", "--input", "a.png", "--output", "out", "--batch-size", "0"], "at least 1"),
            (["--model", "m", "--input", "a.png", "--output", "out", "--dtype", "int8"], "--dtype"),
        ],
    )
    def test_wrong_arguments(self, capsys, arguments, message):
        with pytest.raises(SystemExit) as caught:
            predict.main(arguments)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
