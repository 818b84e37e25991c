"""Reading and writing video files: times, sizes, sound, and what is wrong with some files."""

import struct
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import av
import numpy as np
import pytest

from colored_people import draw_people, save_video
from transformers_detrpose.video_files import reading
from transformers_detrpose.video_files.reading import UnreadableVideo, describe, is_live, open_video
from transformers_detrpose.video_files.writing import VideoWriter


def grays(num_frames, height=48, width=64):
    return [np.full((height, width, 3), 20 * index, dtype=np.uint8) for index in range(num_frames)]


def read(path):
    with open_video(path) as video:
        return list(video.frames)


def copy(source, path):
    """Writes a video again, with its sound."""
    with open_video(source) as video, VideoWriter(path, video, source=video) as writer:
        for frame in video.frames:
            writer.write(*frame)
    return path


def read_sound(path):
    """Returns the codec, the first channel, and its samples per second."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        frames = [frame.to_ndarray() for frame in container.decode(stream)]
        step = 1 if stream.format.is_planar else stream.channels
        return stream.codec.canonical_name, np.concatenate([frame[0, ::step] for frame in frames]), stream.rate


class TestReading:
    @pytest.mark.parametrize(
        ("name", "codec"), [("a.mp4", "h264"), ("a.mkv", "h264"), ("a.avi", "mjpeg"), ("a.webm", "libvpx-vp9")]
    )
    def test_formats(self, tmp_path, name, codec):
        images = grays(6)
        with open_video(save_video(tmp_path / name, images, fps=12.5, codec=codec)) as video:
            assert (video.height, video.width) == (48, 64)
            assert video.fps == pytest.approx(12.5, rel=0.01)
            frames = list(video.frames)
        assert [frame.timestamp for frame in frames] == pytest.approx([index / 12.5 for index in range(6)], abs=2e-3)
        for frame, image in zip(frames, images, strict=True):
            assert np.abs(frame.pixels.astype(int) - image).max() < 12

    def test_times_begin_at_the_first_frame(self, tmp_path):
        frames = read(save_video(tmp_path / "a.ts", grays(4), start=2.0))
        assert [frame.timestamp for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3])

    def test_times_that_jump_and_go_back(self):
        """A jump stays, as nothing was seen meanwhile. A clock that was set back goes on from where it was."""

        class Decoded:
            rotation = 0

            def __init__(self, time):
                self.time = time

            def to_ndarray(self, format):
                return np.zeros((4, 4, 3), dtype=np.uint8)

        times = [5.0, 5.1, 9.0, 9.0, 1.0, 1.1, None]
        video = reading.Video(4, 4, 10.0, None, iter(()), start=5.0)
        frames = reading._timed_frames(map(Decoded, times), video, "rtsp://camera/")
        expected = [0, 0.1, 4.0, 4.1, 4.2, 4.3, 4.4]
        assert [frame.timestamp for frame in frames] == pytest.approx(expected)

    def test_frames_that_change_their_size(self, tmp_path, caplog):
        """Here two videos in one: all frames get the size of the first."""
        first, second = (
            save_video(tmp_path / f"{index}.ts", images)
            for index, images in enumerate((grays(3), grays(3, height=96, width=160)))
        )
        (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
        frames = read(tmp_path / "both.ts")
        assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
        assert len(frames) == 6
        assert (np.diff([frame.timestamp for frame in frames]) > 0).all()
        (message,) = [record.getMessage() for record in caplog.records]
        assert "changes its size from 64x48 to 160x96" in message

    def test_phones_hold_cameras_upright(self, tmp_path):
        """The file says that the picture shall be turned; a bright left edge becomes the upper one."""
        image = np.zeros((48, 64, 3), dtype=np.uint8)
        image[:, :16] = 255
        path = save_video(tmp_path / "a.mp4", [image])
        unit = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
        quarter = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # clockwise
        content = path.read_bytes()
        track = content.index(b"tkhd")
        assert unit in content[track : track + 92]
        path.write_bytes(content[:track] + content[track:].replace(unit, quarter, 1))
        (frame,) = read(path)
        assert frame.pixels.shape == (64, 48, 3)
        assert frame.pixels[:12].min() > 200 and frame.pixels[24:].max() < 50

    def test_cut_off(self, tmp_path, caplog):
        """What is there is read."""
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(20)]
        path = save_video(tmp_path / "a.avi", images, codec="mjpeg")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert 5 < len(read(path)) < 15

    @pytest.mark.parametrize(
        ("content", "problem"), [(b"", "Invalid data"), (b"not a video", "Invalid data"), (None, "it has no pictures")]
    )
    def test_unreadable(self, tmp_path, content, problem):
        path = tmp_path / "a.mp4"
        if content is None:
            with av.open(str(path), mode="w") as container:
                stream = container.add_stream("aac", rate=48_000)
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), dtype=np.int16), "s16", "stereo")
                silence.rate = 48_000
                container.mux([*stream.encode(silence), *stream.encode(None)])
        else:
            path.write_bytes(content)
        with pytest.raises(UnreadableVideo, match=f"cannot read video {path}: {problem}"), open_video(path):
            pass

    def test_by_url(self, tmp_path, monkeypatch):
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        save_video(tmp_path / "a.mp4", grays(4))
        handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
        monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1]}"
            assert len(read(f"{url}/a.mp4")) == 4
            with pytest.raises(UnreadableVideo, match="cannot read stream http://127.0.0.1:.*/b.mp4: .*404"):
                read(f"{url}/b.mp4")
            server.shutdown()

    def test_nobody_answers(self):
        with pytest.raises(UnreadableVideo, match="cannot read stream rtsp://127.0.0.1:9/live: Connection refused"):
            read("rtsp://user:secret@127.0.0.1:9/live?token=secret")

    def test_passwords_stay_secret(self):
        assert (
            describe("rtsp://user:secret@camera.local:554/live?token=secret") == "stream rtsp://camera.local:554/live"
        )

    def test_what_is_live(self, tmp_path):
        assert is_live(0) and is_live("rtsp://camera/") and is_live("UDP://239.0.0.1:1234")
        assert not is_live("https://host/a.mp4") and not is_live(tmp_path / "a.mp4")


class TestSound:
    @pytest.mark.parametrize(
        ("name", "codec", "given", "expected"),
        [
            ("a.mp4", "h264", "aac", "aac"),
            ("a.avi", "mjpeg", "mp3", "mp3"),
            ("a.webm", "libvpx-vp9", "libopus", "opus"),
            ("a.mov", "h264", "pcm_s16le", "aac"),  # which few players read in MP4
        ],
    )
    def test_is_kept(self, tmp_path, name, codec, given, expected):
        source = save_video(tmp_path / name, grays(10), codec=codec, audio=given)
        found, samples, rate = read_sound(copy(source, tmp_path / "out.mp4"))
        assert found == expected
        assert len(samples) / rate == pytest.approx(1.0, abs=0.1)
        spectrum = np.abs(np.fft.rfft(samples.astype(float)))
        assert spectrum.argmax() * rate / len(samples) == pytest.approx(440, abs=5)

    def test_is_copied_bit_by_bit(self, tmp_path):
        def packets(path):
            with av.open(str(path)) as container:
                return [
                    bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.dts is not None
                ]

        source = save_video(tmp_path / "a.mp4", grays(10), audio="aac")
        given, written = packets(source), packets(copy(source, tmp_path / "out.mp4"))
        assert len(written) >= 0.9 * len(given)
        assert set(written) <= set(given)

    def test_stays_with_the_pictures(self, tmp_path):
        """The source begins at 2 s, and both the pictures and the sound of the result at 0."""
        source = save_video(tmp_path / "a.ts", grays(10), audio="aac", start=2.0)
        with av.open(str(copy(source, tmp_path / "out.mp4"))) as container:
            starts = [float(stream.start_time * stream.time_base) for stream in container.streams]
            ends = [float((stream.start_time + stream.duration) * stream.time_base) for stream in container.streams]
        assert starts == pytest.approx([0, 0], abs=0.05)
        assert ends == pytest.approx([1, 1], abs=0.05)

    def test_ends_with_the_pictures(self, tmp_path):
        source = save_video(tmp_path / "a.mp4", grays(10), audio="aac")
        with open_video(source) as video, VideoWriter(tmp_path / "out.mp4", video, source=video) as writer:
            frames = list(video.frames)  # with all the sound
            for frame in frames[:5]:
                writer.write(*frame)
        _, samples, rate = read_sound(tmp_path / "out.mp4")
        assert len(samples) / rate == pytest.approx(0.5, abs=0.05)


class TestWriting:
    def test_times_are_kept(self, tmp_path):
        times = [0.0, 0.1, 0.5, 0.55]
        with open_video(save_video(tmp_path / "a.mp4", grays(1))) as video:
            with VideoWriter(tmp_path / "out.mp4", video) as writer:
                for time in times:
                    writer.write(draw_people(height=48), time)
        assert [frame.timestamp for frame in read(tmp_path / "out.mp4")] == pytest.approx(times)

    def test_frames_follow_each_other_without_times(self, tmp_path):
        with open_video(save_video(tmp_path / "a.mp4", grays(1))) as video:
            with VideoWriter(tmp_path / "out.mp4", video) as writer:
                for _ in range(3):
                    writer.write(draw_people(height=48))
        assert [frame.timestamp for frame in read(tmp_path / "out.mp4")] == pytest.approx([0, 0.1, 0.2])
