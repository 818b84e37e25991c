"""Reading checkpoints of others and writing folders of ours: safely, strictly, whole or not at all."""

import argparse
import itertools
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import create_repo, snapshot_download, upload_folder
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor, DETRPoseModel
from ..configuration_detrpose import VARIANTS
from ..keypoint_schemas import SCHEMAS
from ..model_card import model_card
from .names import COUNTER

StateDict = dict[str, torch.Tensor]

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")

logger = logging.getLogger("conversion")


class ConversionError(ValueError):
    """A checkpoint cannot become a folder; the message says why in a line."""


def read_state_dict(source: str, weights: str = "best") -> StateDict:
    """Reads the tensors of a checkpoint.

    Args:
        source: a `.pth` or safetensors file, a folder with safetensors in one or several files, or a Hub id.
        weights: which weights of an official `.pth`: "averaged" (`ema.module`), "last" (`model`), or "best": averaged
            where the file has them.

    Returns:
        name → tensor, without a prefix that all names share.

    Raises:
        ConversionError: if the source cannot be read or does not hold tensors by name.
    """
    path = Path(source)
    if not path.exists():
        if source.count("/") != 1 or path.suffix in FILE_SUFFIXES:
            raise ConversionError(f"{source}: no such file or folder.")
        path = Path(_download_from_hub(source))
    if path.is_dir():
        state_dict = _read_folder(path)
    elif path.suffix == ".safetensors":
        state_dict = _read_safetensors(path)
    else:
        state_dict = _choose_weights(path, _read_pickle(path), weights)
    is_checkpoint = isinstance(state_dict, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state_dict.items()
    )
    if not is_checkpoint or not state_dict:
        raise ConversionError(f"{source}: holds no tensors by name, so it is not a checkpoint of this kind.")
    return _without_prefix(state_dict)


def _download_from_hub(repo_id: str) -> str:
    try:
        return snapshot_download(repo_id, allow_patterns=["*.safetensors", "*.safetensors.index.json"])
    except Exception as error:
        reason = _first_line(error)
        raise ConversionError(f"{repo_id}: no file, no folder, no readable Hub repository ({reason})") from error


def _read_folder(folder: Path) -> StateDict:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConversionError(f"{index}: not a readable index of safetensors files.") from error
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        raise ConversionError(f"{folder}: the folder has no .safetensors file.")
    return {name: tensor for file in names for name, tensor in _read_safetensors(folder / file).items()}


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path}: not a readable safetensors file ({error}).") from error


def _read_pickle(path: Path):
    """Reads a PyTorch file without running code from it; research checkpoints often carry their arguments along."""
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        foreign = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        reason = f"{foreign[1]} in it would run code" if foreign else _first_line(error)
        raise ConversionError(f"{path}: not a readable PyTorch checkpoint of plain tensors ({reason}).") from error


def _choose_weights(path: Path, checkpoint, weights: str) -> StateDict:
    if not isinstance(checkpoint, dict):
        raise ConversionError(f"{path}: holds a {type(checkpoint).__name__}, not tensors by name.")
    averaged = checkpoint.get("ema")
    averaged = averaged.get("module") if isinstance(averaged, dict) else None
    last = checkpoint.get("model")
    if weights == "averaged" and averaged is None:
        raise ConversionError(f"{path}: has no averaged weights (`ema.module`); try --weights last.")
    if weights == "last" and last is None:
        raise ConversionError(f"{path}: has no last weights (`model`); try --weights averaged.")
    preferred = [last] if weights == "last" else [averaged, last, checkpoint]
    return next(candidate for candidate in preferred if candidate is not None)


def _without_prefix(state_dict: StateDict) -> StateDict:
    """Removes what wrappers (`module.`, `model.`, ...) put before every name."""
    prefixes = {name[: name.index("backbone.")] for name in state_dict if "backbone." in name}
    prefix = min(prefixes, key=len, default="")
    if prefix and all(name.startswith(prefix) for name in state_dict):
        return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return state_dict


def shape_problems(tensors: StateDict, expected: StateDict) -> list[str]:
    """Lists what keeps tensors from filling a model, both by our names; empty if all fit."""
    missing = [f"missing {name}" for name in expected if name not in tensors and not COUNTER.search(name)]
    unused = [f"unused {name}" for name in tensors if name not in expected and not COUNTER.search(name)]
    different = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    return missing + unused + different


@cache
def published_tensors(variant: str, dataset: str) -> StateDict:
    """Returns the tensors of a published model by our names, with shapes but without numbers."""
    with torch.device("meta"):
        return DETRPoseModel(DETRPoseConfig.from_variant(variant, skeleton=dataset)).state_dict()


def check_variant(
    tensors: StateDict, source: str, variant: str, dataset: str | None = None, parts: tuple[str, ...] = ("",)
):
    """Checks that tensors, by our names, are those of the chosen variant and dataset.

    Args:
        tensors: name → tensor.
        source: where the tensors come from, for the message.
        variant: "n", "s", "m", "l" or "x".
        dataset: "coco" or "crowdpose", or None where the tensors do not depend on it.
        parts: beginnings of the names that the tensors must fill.

    Raises:
        ConversionError: naming the variant and dataset that fit, or else what does not fit the chosen ones.
    """

    def problems(variant: str, dataset: str | None) -> list[str]:
        published = published_tensors(variant, dataset or "coco")
        return shape_problems(tensors, {name: published[name] for name in published if name.startswith(parts)})

    found = problems(variant, dataset)
    if not found:
        return
    for other in itertools.product(VARIANTS, [dataset] if dataset is None else SCHEMAS):
        if not problems(*other):
            raise ConversionError(f"{source} fits {_options(*other)}, not {_options(variant, dataset)}.")
    listed = "; ".join(found[:20]) + (f"; and {len(found) - 20} more" if len(found) > 20 else "")
    raise ConversionError(f"{source} fits no published variant. Against {_options(variant, dataset)}: {listed}.")


def _options(variant: str, dataset: str | None) -> str:
    return f"--variant {variant}" + (f" --dataset {dataset}" if dataset else "")


def fill(model: DETRPoseForPoseEstimation, tensors: StateDict) -> list[str]:
    """Copies tensors that `check_variant` has checked into a model, and returns the names it has no use for."""
    wanted = model.model.state_dict()
    model.model.load_state_dict({name: tensors.get(name, tensor) for name, tensor in wanted.items()})
    return [name for name in tensors if name not in wanted]


@contextmanager
def whole_folder(output: str) -> Iterator[Path]:
    """Gives a folder to fill, which takes the name `output` once it is complete and otherwise disappears.

    Raises:
        ConversionError: if `output` exists already and is not an empty folder.
    """
    check_output(output)
    output = Path(output).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as beside:
        folder = Path(beside) / output.name
        folder.mkdir()
        yield folder
        if output.exists():
            output.rmdir()
        os.replace(folder, output)


def check_output(output: str | Path):
    """Raises `ConversionError` if `output` exists already and is not an empty folder."""
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConversionError(f"{output}: exists already; remove it or choose another --output.")


def save(model: DETRPoseForPoseEstimation, origin: str, output: str, repo_id: str | None = None):
    """Writes weights, configuration, image processor, code and model card, and pushes them if asked.

    Args:
        model: the converted model.
        origin: where its weights come from, for the card.
        output: folder to write.
        repo_id: Hub repository to upload the folder to; created where it does not exist.

    Raises:
        ConversionError: if `output` exists already and is not an empty folder, or if pushing fails.
    """
    with whole_folder(output) as folder:
        model.save_pretrained(folder)
        DETRPoseImageProcessor(keypoint_schema=model.config.keypoint_schema).save_pretrained(folder)
        card = model_card(model.config, repo_id or output, origin)
        (folder / "README.md").write_text(card, encoding="utf-8")
    logger.info("wrote %s", output)
    if repo_id is None:
        return
    try:
        create_repo(repo_id, exist_ok=True)
        upload_folder(repo_id=repo_id, folder_path=output, commit_message="Upload DETRPose")
    except Exception as error:
        raise ConversionError(f"{output} is written, but pushing to {repo_id} failed: {_first_line(error)}") from error
    logger.info("pushed to %s", repo_id)


def run(convert: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Runs a conversion as a command: what goes wrong becomes a line and an exit code."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        convert(args)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
