"""A model that finds people by their color, and videos of them: what it finds is known, and nothing is trained."""

from fractions import Fraction

import av
import numpy as np
import torch

from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimationOutput

SIZE = 64  # of images, and of what the model sees
RADIUS = 6
FPS = 10.0


class PreTrainedModel:
    """transformers 4 recognizes PyTorch models by the name of a base class, which ONNX Runtime's models have, too."""


class ColorModel(PreTrainedModel):
    """Finds a person where red is bright, with a score of 0.95, and one where green is, with 0.73."""

    device, dtype = torch.device("cpu"), torch.float32
    config = DETRPoseConfig()

    def to(self, device):
        return self

    def __call__(self, pixel_values):
        offsets = torch.linspace(-1, 1, 17) * RADIUS / SIZE
        masks = (pixel_values[:, :2] > 0.5).float()
        totals = masks.sum(dim=(2, 3))
        pixels = (torch.arange(SIZE) + 0.5) / SIZE
        x, y = ((masks.sum(dim=axis) * pixels).sum(dim=2) / totals.clamp(min=1) for axis in (2, 3))
        logits = torch.where(totals > 0, torch.tensor([3.0, 1.0]), torch.tensor(-9.0))
        return DETRPoseForPoseEstimationOutput(
            logits=torch.stack([torch.full_like(logits, -9.0), logits], dim=-1),
            pred_keypoints=torch.stack([x, y], dim=-1)[:, :, None] + offsets[:, None],
        )


def draw_people(red=None, green=None, height=SIZE, width=SIZE):
    """Returns an image (height, width, 3) with people at (x, y) in pixels."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for channel, place in enumerate((red, green)):
        if place is not None:
            x, y = place
            pixels[max(0, y - RADIUS) : y + RADIUS, max(0, x - RADIUS) : x + RADIUS, channel] = 255
    return pixels


def walk(num_frames, step=2):
    """Returns images of two people who walk in opposite directions, one above the other."""
    places = [10 + step * index for index in range(num_frames)]
    return [draw_people(red=(x, 20), green=(SIZE - x, 44)) for x in places]


def save_video(path, images, fps=FPS, codec="h264", audio=None, start=0.0):
    """Writes a video of images (height, width, 3), with a tone of 440 Hz in the given codec; begins at `start` s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate, sample_rate = Fraction(fps), 48_000
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        sound = container.add_stream(audio, rate=sample_rate) if audio else None
        per_frame = int(sample_rate / rate)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index + round(start * rate), 1 / rate
            container.mux(stream.encode(frame))
            if sound is not None:
                samples = np.arange(per_frame) + per_frame * index
                wave = (8000 * np.sin(2 * np.pi * 440 * samples / sample_rate)).astype(np.int16)
                chunk = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
                chunk.rate, chunk.time_base = sample_rate, Fraction(1, sample_rate)
                chunk.pts = int(samples[0]) + round(start * sample_rate)
                container.mux(sound.encode(chunk))
        for each in [stream] if sound is None else [stream, sound]:
            container.mux(each.encode(None))
    return path
