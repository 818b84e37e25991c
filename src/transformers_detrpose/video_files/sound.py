"""Writes the sound of a video into another one."""

from .reading import Video

COPIED_CODECS = {"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"}  # that players expect in MP4
AAC_RATE = 48_000  # samples per second


class Sound:
    """Writes the sound of a video as its packets come in: copied if MP4 has that codec, else encoded as AAC.

    Args:
        container: PyAV's container to write to, before anything was written.
        video: The video with the sound.
    """

    def __init__(self, container, video: Video):
        import av  # imported here because its libraries conflict with those of OpenCV on macOS

        self.container, self.video = container, video
        self.is_copied = video.audio.codec.canonical_name in COPIED_CODECS
        if self.is_copied:
            self.stream = container.add_stream_from_template(video.audio)
        else:
            self.stream = container.add_stream("aac", rate=AAC_RATE)
            self.stream.layout = "mono" if video.audio.channels == 1 else "stereo"
            self.resampler = av.AudioResampler(self.stream.format, self.stream.layout, self.stream.rate)
        self.last_dts = None

    def write_until(self, seconds: float):
        """Writes the packets that are there and begin before a time, in seconds since the first frame."""
        packets = self.video.audio_packets
        while packets and self._start(packets[0]) < seconds:
            packet = packets.popleft()
            is_in_order = self.last_dts is None or packet.dts > self.last_dts
            if self._start(packet) >= 0 and is_in_order:
                self.last_dts = packet.dts
                self._copy(packet) if self.is_copied else self._encode(packet)

    def finish(self, seconds: float):
        """Writes what begins before a time, and whatever the encoder holds."""
        self.write_until(seconds)
        if not self.is_copied:
            self.container.mux(self.stream.encode(None))

    def _start(self, packet) -> float:
        return float(packet.dts * packet.time_base) - self.video.start

    def _copy(self, packet):
        shift = round(self.video.start / packet.time_base)
        packet.dts -= shift
        packet.pts = packet.dts if packet.pts is None else packet.pts - shift
        packet.stream = self.stream
        self.container.mux(packet)

    def _encode(self, packet):
        for frame in packet.decode():
            frame.pts -= round(self.video.start / frame.time_base)
            for resampled in self.resampler.resample(frame):
                self.container.mux(self.stream.encode(resampled))
