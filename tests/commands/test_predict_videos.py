"""The prediction command on videos, streams and cameras, with a model that finds people by their color."""

import json
import sys
import types

import av
import numpy as np
import pytest

from colored_people import SIZE, ColorModel, draw_people, save_video, walk
from transformers_detrpose import DETRPoseImageProcessor
from transformers_detrpose.commands import predict
from transformers_detrpose.prediction import models, paths, videos
from transformers_detrpose.video_files import reading, writing
from transformers_detrpose.visualization import PALETTE


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def command(monkeypatch, tmp_path, out):
    """Runs the command with the model of colors in `tmp_path`, which is the current folder."""
    size = {"height": SIZE, "width": SIZE}
    processor = DETRPoseImageProcessor(size=size, keypoint_schema=ColorModel.config.keypoint_schema)
    monkeypatch.setattr(models, "load_pose_estimator", lambda *arguments: ColorModel())
    monkeypatch.setattr(models, "load_image_processor", lambda *arguments: processor)
    monkeypatch.chdir(tmp_path)

    def run(*inputs, options=()):
        inputs = [str(path) for path in inputs]
        options = ["--output", str(out), "--device", "cpu", "--threshold", "0.2", *options]
        return predict.main(["--model", "colors", "--input", *inputs, *options])

    return run


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe(path):
    """Returns codec, width, height, nominal frame rate and number of frames of a video."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        codec = stream.codec_context
        return codec.name, codec.width, codec.height, stream.average_rate, sum(1 for _ in container.decode(stream))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class TestVideos:
    @pytest.mark.parametrize("options", [[], ["--batch-size", "2"], ["--batch-size", "100"]])
    def test_round_trip(self, command, tmp_path, out, options):
        assert command(save_video(tmp_path / "a.mp4", walk(5), fps=12.5), options=options) == 0
        assert describe(out / "a.mp4") == ("h264", 64, 64, 12.5, 5)
        lines = read_lines(out / "a.mp4.jsonl")
        assert [line["frame"] for line in lines] == [0, 1, 2, 3, 4]
        assert [line["timestamp"] for line in lines] == pytest.approx([0, 0.08, 0.16, 0.24, 0.32])
        for index, line in enumerate(lines):
            red, green = (np.reshape(pose["keypoints"], (17, 3))[:, :2].mean(axis=0) for pose in line["poses"])
            assert red == pytest.approx([10 + 2 * index, 20], abs=1)
            assert green == pytest.approx([54 - 2 * index, 44], abs=1)
        assert set(lines[0]["poses"][0]) == {"category_id", "keypoints", "score", "bbox"}
        assert files(out) == ["a.mp4", "a.mp4.jsonl"]

    def test_colors_survive(self, command, tmp_path, out):
        blue = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        blue[..., 2] = 200
        assert command(save_video(tmp_path / "a.mp4", [blue])) == 0
        with av.open(str(out / "a.mp4")) as container:
            (frame,) = container.decode(video=0)
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - blue).max() < 20

    def test_other_formats_and_odd_sizes(self, command, tmp_path, out):
        """H.264 has even sizes only."""
        save_video(tmp_path / "in" / "a.avi", [draw_people(height=41, width=61)] * 3, codec="mjpeg")
        assert command(tmp_path / "in") == 0
        assert describe(out / "a.avi.mp4") == ("h264", 62, 42, 10, 3)

    def test_sound_is_kept(self, command, tmp_path, out):
        assert command(save_video(tmp_path / "a.mp4", walk(10), audio="aac")) == 0
        with av.open(str(out / "a.mp4")) as container:
            (stream,) = container.streams.audio
            assert float(stream.duration * stream.time_base) == pytest.approx(1, abs=0.1)

    def test_max_frames(self, command, tmp_path, out):
        assert command(save_video(tmp_path / "a.mp4", walk(5)), options=["--max-frames", "3"]) == 0
        assert len(read_lines(out / "a.mp4.jsonl")) == 3

    def test_unreadable(self, command, tmp_path, out, capfd):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.mp4").write_bytes(b"not a video")
        save_video(tmp_path / "in" / "b.mp4", walk(5))
        assert command(tmp_path / "in") == 1
        errors = [line for line in capfd.readouterr().err.splitlines() if "read" in line]
        assert errors == [
            f"cannot read video {tmp_path / 'in' / 'a.mp4'}: Invalid data found when processing input",
            "detrpose predict: error: 1 of 2 inputs could not be read",
        ]
        assert files(out) == ["b.mp4", "b.mp4.jsonl"]

    def test_fewer_frames_than_announced(self, command, monkeypatch, tmp_path, out, capsys):
        whole = reading._timed_frames
        monkeypatch.setattr(reading, "_timed_frames", lambda *arguments: list(whole(*arguments))[:3])
        assert command(save_video(tmp_path / "a.mp4", walk(5))) == 0
        assert len(read_lines(out / "a.mp4.jsonl")) == 3
        assert "a.mp4 should have 5 frames, but only 3" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (reading, "_upright"),  # decoding
            (models.Predictor, "prepare"),
            (models.Predictor, "predict"),
            (models.Predictor, "draw"),
            (writing.VideoWriter, "write"),
        ],
    )
    def test_a_failing_stage_ends_all_and_leaves_nothing(
        self, command, monkeypatch, tmp_path, out, capsys, owner, name
    ):
        works, calls = getattr(owner, name), []

        def fail_later(*arguments):
            calls.append(name)
            if len(calls) == 4:
                raise OSError("the disk is on fire")
            return works(*arguments)

        monkeypatch.setattr(owner, name, fail_later)
        path = save_video(tmp_path / "a.mp4", walk(20, step=1))
        assert command(path, options=["--batch-size", "2"]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert lines == ["detrpose predict: error: the disk is on fire"]
        assert files(out) == []

    def test_interrupted(self, command, monkeypatch, tmp_path, out):
        interrupt_after(monkeypatch, 3)
        path = save_video(tmp_path / "a.mp4", walk(5))
        assert command(path, options=["--batch-size", "1"]) == 130
        assert len(read_lines(out / "a.mp4.jsonl")) == 3
        assert describe(out / "a.mp4")[-1] == 3

    def test_decoding_does_not_run_far_ahead(self, command, monkeypatch, tmp_path, out):
        """However long the video is, few frames are in memory."""
        decode, predict_batch, decoded, predicted, ahead = reading._upright, models.Predictor.predict, [], [], []
        monkeypatch.setattr(reading, "_upright", lambda frame: decoded.append(1) or decode(frame))

        def slow_predict(self, batch, *arguments):
            predicted.extend(batch.boxes)
            ahead.append(len(decoded) - len(predicted))
            return predict_batch(self, batch, *arguments)

        monkeypatch.setattr(models.Predictor, "predict", slow_predict)
        assert command(save_video(tmp_path / "a.mp4", walk(80, step=0)), options=["--batch-size", "2"]) == 0
        assert len(predicted) == 80
        # Ready frames, one batch ready and one being made, and single frames in the hands of a stage.
        assert max(ahead) <= videos.DECODED_FRAMES + 2 * 2 + 2 + 3


def interrupt_after(monkeypatch, num_frames):
    written, write = [], writing.VideoWriter.write

    def write_or_interrupt(*arguments):
        if len(written) == num_frames:
            raise KeyboardInterrupt
        written.append(write(*arguments))

    monkeypatch.setattr(writing.VideoWriter, "write", write_or_interrupt)


class TestCameras:
    @pytest.fixture
    def camera(self, monkeypatch):
        """A camera that gives 30 black frames, stops then, and does not tell its frame rate."""

        class Camera:
            def __init__(self, index):
                self.rest = 30 if index < 8 else 0

            def read(self):
                self.rest -= 1
                return self.rest >= 0, np.zeros((48, 64, 3), dtype=np.uint8)

            def get(self, name):
                return 0.0

            def release(self):
                pass

        opencv = types.SimpleNamespace(VideoCapture=Camera, CAP_PROP_FPS=5)
        monkeypatch.setitem(sys.modules, "cv2", opencv)

    def test_ends_with_ctrl_c(self, command, camera, monkeypatch, out):
        """Slow drawing loses frames of a camera, but never one that was written."""
        interrupt_after(monkeypatch, 3)
        assert command("0", options=["--batch-size", "1"]) == 0
        lines = read_lines(out / "camera0.mp4.jsonl")
        assert len(lines) == 3
        assert (np.diff([line["timestamp"] for line in lines]) > 0).all()
        codec, width, height, _, count = describe(out / "camera0.mp4")
        assert (codec, width, height, count) == ("h264", 64, 48, 3)

    def test_max_frames(self, command, camera, out):
        assert command("1", options=["--max-frames", "2"]) == 0
        assert len(read_lines(out / "camera1.mp4.jsonl")) == 2

    def test_gives_no_pictures(self, command, camera, capsys):
        assert command("9") == 1
        assert "cannot read camera 9: it gives no pictures" in capsys.readouterr().err

    def test_needs_opencv(self, command, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "cv2", None)
        assert command("0") == 1
        assert 'cannot read camera 0: pip install "transformers-detrpose[video]"' in capsys.readouterr().err

    def test_a_file_with_such_a_name_is_a_file(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "0").write_bytes(b"an image")
        assert paths.find_inputs(["0", "1"], tmp_path / "out") == ({"0": tmp_path / "0"}, {"camera1.mp4": 1})

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("rtsp://user:secret@camera.local:554/live/1?token=x", "camera.local_live_1.mp4"),
            ("https://host/films/a.mp4", "host_films_a.mp4"),
            ("udp://239.0.0.1:1234", "239.0.0.1.mp4"),
        ],
    )
    def test_streams_are_called_after_their_url(self, tmp_path, url, name):
        assert paths.find_inputs([url], tmp_path / "out") == ({}, {name: url})


class TestTracks:
    def test_people_keep_their_numbers_and_colors(self, command, tmp_path, out):
        """They cross, one above the other; the colors of skeletons are those of the numbers in all frames."""
        path = save_video(tmp_path / "a.mp4", walk(20))
        options = ["--track", "--smooth", "online", "--tracks-format", "posetrack", "mot"]
        assert command(path, options=options) == 0
        lines = read_lines(out / "a.mp4.jsonl")
        by_row = {20: set(), 44: set()}
        for line in lines:
            for pose in line["poses"]:
                y = np.mean(pose["keypoints"][1::3])
                by_row[min(by_row, key=lambda row: abs(row - y))].add(pose["track_id"])
        assert all(len(numbers) == 1 for numbers in by_row.values())
        assert by_row[20] != by_row[44]
        assert len(lines[-1]["poses"]) == 2
        with av.open(str(out / "a.mp4")) as container:
            last = list(container.decode(video=0))[-1].to_ndarray(format="rgb24").astype(int)
        for row, numbers in by_row.items():
            color = PALETTE.by_idx(numbers.pop()).as_rgb()
            drawn = np.abs(last[row - 8 : row + 8] - color).max(axis=-1) < 60
            assert drawn.any()

    def test_exported_formats(self, command, tmp_path, out):
        options = ["--track", "--tracks-format", "posetrack", "mot"]
        assert command(save_video(tmp_path / "a.mp4", walk(12)), options=options) == 0
        lines = read_lines(out / "a.mp4.jsonl")
        poses = [(line["frame"], pose) for line in lines for pose in line["poses"]]
        assert len(poses) >= 16

        rows = [[float(value) for value in row.split(",")] for row in (out / "a.mp4.mot.txt").read_text().splitlines()]
        assert len(rows) == len(poses)
        for row, (frame, pose) in zip(rows, poses, strict=True):
            assert row == pytest.approx(
                [frame + 1, pose["track_id"], *pose["bbox"], pose["score"], -1, -1, -1], rel=1e-4
            )

        content = json.loads((out / "a.mp4.posetrack.json").read_text())
        assert [image["frame_id"] for image in content["images"]] == list(range(12))
        (_, person) = content["categories"]
        assert person["name"] == "person" and person["keypoints"] == list(ColorModel.config.keypoint_schema.names)
        for annotation, (frame, pose) in zip(content["annotations"], poses, strict=True):
            assert (annotation["image_id"], annotation["track_id"]) == (frame, pose["track_id"])
            assert annotation["keypoints"][:2] == pose["keypoints"][:2]
            assert annotation["scores"] == pose["keypoints"][2::3]

    def test_pycocotools_loads_the_export(self, command, tmp_path, out):
        coco = pytest.importorskip("pycocotools.coco")
        options = ["--track", "--tracks-format", "posetrack"]
        assert command(save_video(tmp_path / "a.mp4", walk(12)), options=options) == 0
        dataset = coco.COCO(out / "a.mp4.posetrack.json")
        assert len(dataset.imgs) == 12 and len(dataset.anns) >= 16

    def test_smoothed_offline(self, command, tmp_path, out):
        path = save_video(tmp_path / "a.mp4", walk(12), audio="aac")
        assert command(path, options=["--track", "--smooth", "offline"]) == 0
        assert describe(out / "a.mp4")[-1] == 12
        lines = read_lines(out / "a.mp4.jsonl")
        assert len(lines) == 12
        assert all({"track_id", "filled"} <= pose.keys() for line in lines for pose in line["poses"])
        assert len(lines[-1]["poses"]) == 2
        # Also where the tracks were not yet confirmed.
        first_ids, last_ids = ([pose["track_id"] for pose in line["poses"]] for line in (lines[0], lines[-1]))
        assert sorted(first_ids) == sorted(last_ids) == [0, 1]

    def test_low_scores_continue_tracks_and_begin_none(self, command, tmp_path, out):
        """The green person scores 0.73, below the threshold."""
        path = save_video(tmp_path / "a.mp4", walk(10))
        assert command(path, options=["--track", "--threshold", "0.8"]) == 0
        poses = [pose for line in read_lines(out / "a.mp4.jsonl") for pose in line["poses"]]
        assert len(poses) >= 5
        assert len({pose["track_id"] for pose in poses}) == 1
        assert all(abs(np.mean(pose["keypoints"][1::3]) - 20) < 2 for pose in poses)

    def test_nobody(self, command, tmp_path, out):
        path = save_video(tmp_path / "a.mp4", [draw_people()] * 10)
        options = ["--track", "--smooth", "offline", "--tracks-format", "posetrack", "mot"]
        assert command(path, options=options) == 0
        assert all(line["poses"] == [] for line in read_lines(out / "a.mp4.jsonl"))
        assert (out / "a.mp4.mot.txt").read_text() == ""
        assert json.loads((out / "a.mp4.posetrack.json").read_text())["annotations"] == []


class TestFewerPoses:
    def test_max_people(self, command, tmp_path, out):
        assert command(save_video(tmp_path / "a.mp4", walk(3)), options=["--max-people", "1"]) == 0
        lines = read_lines(out / "a.mp4.jsonl")
        assert [len(line["poses"]) for line in lines] == [1, 1, 1]
        assert all(line["poses"][0]["score"] > 0.9 for line in lines)

    @pytest.mark.parametrize(("options", "expected"), [([], 2), (["--remove-duplicates", "0.8"], 1)])
    def test_duplicates(self, command, tmp_path, out, options, expected):
        """Two poses in the same place, of which the better one stays."""
        path = save_video(tmp_path / "a.mp4", [draw_people(red=(30, 30), green=(30, 30))])
        assert command(path, options=options) == 0
        (line,) = read_lines(out / "a.mp4.jsonl")
        assert len(line["poses"]) == expected
        assert line["poses"][0]["score"] > 0.9


class TestErrors:
    @pytest.mark.parametrize(
        ("inputs", "options", "message"),
        [
            (["a.png"], ["--track"], "--track is for videos, cameras and streams, but there are images only"),
            (["a.png"], ["--smooth", "online"], "--smooth is for videos"),
            (["a.png"], ["--max-frames", "3"], "--max-frames is for videos"),
            (["a.mp4"], ["--smooth", "online"], "--smooth needs --track"),
            (["a.mp4"], ["--tracks-format", "mot"], "--tracks-format needs --track"),
            (["0"], ["--track", "--smooth", "offline"], "--smooth offline reads a file twice, but camera 0 is none"),
            (["rtsp://u:p@h/x"], ["--track", "--smooth", "offline"], "but stream rtsp://h/x is none: use online"),
            (
                ["http://user:secret@host/a.jpg?token=secret#secret"],
                [],
                "error: http://host/a.jpg is an image: by URL, only videos and streams are read",
            ),
            (["http://?secret"], [], "error: http:// is not the URL of a video or stream"),
            (["0", "camera0.mp4"], [], "the result for camera0.mp4 would overwrite"),
        ],
    )
    def test_one_line(self, command, tmp_path, out, capsys, inputs, options, message):
        for name in ("a.png", "a.mp4", "camera0.mp4"):
            (tmp_path / name).write_bytes(b"never read")
        assert command(*inputs, options=options) == 1
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and printed.startswith("detrpose predict: error: ")
        assert message in printed and "secret" not in printed
        assert not out.exists()
