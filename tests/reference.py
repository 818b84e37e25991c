"""The reference cases: a checkpoint in the official layout, its inputs, and the outputs of the official code.

A case is `golden/<name>.json` (names, shapes, targets, losses) and `golden/<name>.npz` (arrays). Weights and images are
not stored: every number of them is drawn by a generator that the name of the tensor seeds.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch

from transformers_detrpose.conversion.names import official_table, translate
from transformers_detrpose.denoising import DenoisingQueries

GOLDEN = Path(__file__).parent / "golden"
CASES = ("detrpose-n-crowdpose", "detrpose-s-coco")
ECPOSE_CASES = ("ecpose-s-coco", "ecpose-l-coco")


@dataclass(frozen=True)
class Case:
    """One reference case; `name` is <family>-<size>-<dataset>."""

    name: str

    @property
    def variant(self) -> str:
        return self.json["variant"]

    @property
    def dataset(self) -> str:
        return self.name.split("-")[2]

    @cached_property
    def json(self) -> dict:
        return json.loads((GOLDEN / f"{self.name}.json").read_text(encoding="utf-8"))

    @property
    def evaluation_tolerances(self) -> tuple[float, float]:
        """Largest differences of logits and keypoints in evaluation; the feature maps of ECPose are larger."""
        return (3e-4, 5e-5) if self.name in ECPOSE_CASES else (1e-4, 1e-5)

    @cached_property
    def table(self) -> list[tuple[str, str]]:
        return official_table(self.json["state_dict"])

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return dict(np.load(GOLDEN / f"{self.name}.npz"))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the checkpoint with its official names. Tensors that the model computes itself, such as anchors, are
        zero."""
        return {
            name: torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))
            if entry.get("constant")
            else torch.from_numpy(make_tensor(name, entry["shape"]))
            for name, entry in self.json["state_dict"].items()
        }

    def our_names(self, official_name: str) -> list[str]:
        """Returns the counterparts of an official tensor: one tensor, or three for a joint projection."""
        return list(translate({official_name: torch.empty(3)}, self.table))

    def image(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Returns the images of the evaluation, (batch, 3, height, width)."""
        images = make_images(**{key: self.json[key] for key in ("name", "batch", "height", "width")})
        return torch.from_numpy(images).to(device)

    def labels(self, device: torch.device | str = "cpu") -> list[dict[str, torch.Tensor]]:
        """Returns the labels of the training step."""
        labels = [
            {
                "class_labels": torch.tensor(target["labels"]),
                "keypoints": torch.cat(
                    (torch.tensor(target["keypoints"]), 2 * torch.tensor(target["visibility"])[..., None]), dim=-1
                ),
                "area": torch.tensor(target["area"]),
            }
            for target in self.json["targets"]
        ]
        return [{name: values.to(device) for name, values in image.items()} for image in labels]

    def training_batch(self, device: torch.device | str = "cpu") -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
        """Returns the images of the training step, (batch, 3, height, width), and their labels."""
        return torch.from_numpy(make_images(**self.json["train_image"])).to(device), self.labels(device)

    def denoising_queries(self, device: torch.device | str = "cpu") -> DenoisingQueries:
        """Returns the denoising queries of the training step."""
        names = ("labels", "reference_points", "attention_mask")
        arrays = {name: torch.from_numpy(self.arrays[f"dn_{name}"]).to(device) for name in names}
        return DenoisingQueries(**arrays, num_groups=self.json["denoising"]["groups"])


@cache
def load_case(name: str) -> Case:
    """Returns the case `name`; its files are read once, when needed."""
    return Case(name)


def our_loss_name(official_name: str) -> str:
    """Translates, for instance, "loss_oks_dn_pre" to "loss_similarity_denoising_initial"."""
    words = {"vfl": "class", "oks": "similarity", "dn": "denoising", "pre": "initial", "enc": "encoder"}
    official_name = official_name.replace("enc_0", "enc")
    return "_".join(words.get(word, word) for word in official_name.split("_"))


def numbers_for(name: str) -> np.random.Generator:
    """Returns a generator seeded by a name, which draws the same numbers on every machine."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))


def make_tensor(name: str, shape: list[int]) -> np.ndarray:
    """Draws a weight or buffer from its official name: float32, scaled to keep activations in a reasonable range."""
    leaf, is_vector = name.split(".")[-1], len(shape) < 2
    is_table = "embed" in name and not any(part in name for part in ("layers", "class_embed", "patch_embed"))
    if leaf == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    if leaf == "running_var":
        return (0.5 + numbers_for(name).random(shape)).astype(np.float32)

    center = 1.0 if leaf == "scale" or (is_vector and leaf == "weight") else 0.0
    if "sampling_offsets.bias" in name:
        spread = 1.0
    elif leaf in ("scale", "running_mean") or (is_vector and leaf == "weight"):
        spread = 0.1
    elif is_vector:
        spread = 0.05
    else:
        spread = 1.0 if is_table else ecpose_factor(name) * math.sqrt(1.2 / math.prod(shape[1:]))
    return (center + spread * numbers_for(name).standard_normal(shape)).astype(np.float32)


def ecpose_factor(name: str) -> float:
    """Scales some weights of ECPose: the image stays visible behind what is the same everywhere, and scores differ."""
    if name.endswith("patch_embed.proj.weight"):
        return 8.0
    if name.endswith((".attn.proj.weight", ".mlp.fc2.weight")):
        return 0.3
    return 0.1 if name.startswith("decoder.lqe_embed") and name.endswith(".layers.1.weight") else 1.0


def make_images(name: str, batch: int, height: int, width: int) -> np.ndarray:
    """Draws smooth RGB images: a coarse grid of random colors, stretched; (batch, 3, height, width), from 0 to 1."""
    coarse = numbers_for(name).random((batch, 3, height // 32 + 2, width // 32 + 2))
    rows = stretch(coarse, width)
    return stretch(rows.swapaxes(2, 3), height).swapaxes(2, 3).astype(np.float32)


def stretch(values: np.ndarray, length: int) -> np.ndarray:
    """Interpolates linearly between the entries of the last axis."""
    places = np.linspace(0, values.shape[-1] - 1.001, length)
    before = places.astype(int)
    share = places - before
    return values[..., before] * (1 - share) + values[..., before + 1] * share
