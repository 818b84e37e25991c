"""Reads checkpoints without executing code, and loads them into models without missing or unexpected tensors."""

import argparse
import itertools
import json
import re
import reprlib
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..configuration_detrpose import DETRPoseConfig
from ..keypoint_schemas import SCHEMAS
from ..loading import first_line
from ..modeling_detrpose import DETRPoseForPoseEstimation, DETRPoseModel
from ..variants import VARIANTS
from .names import COUNTER

StateDict = dict[str, torch.Tensor]

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def read_state_dict(source: str, weights: str = "best") -> StateDict:
    """Reads the tensors of a checkpoint.

    Args:
        source: a `.pth` or safetensors file, a folder with safetensors in one or several files, or a Hub id.
        weights: which weights of an official `.pth` to read: "averaged" (`ema.module`), "last" (`model`), or "best",
            the averaged weights if the file has them.

    Returns:
        name → tensor, without a prefix shared by all names.

    Raises:
        ValueError: if the source cannot be read, does not hold named tensors, or holds one that is not a plain array of
            numbers.
    """
    path = Path(source)
    if not path.exists():
        if source.count("/") != 1 or path.suffix in FILE_SUFFIXES:
            raise ValueError(f"{source}: no such file or folder.")
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
        raise ValueError(f"{source}: holds no tensors by name, so it is not a checkpoint of this kind.")
    _check_kinds(source, state_dict)
    return _without_prefix(state_dict)


def _check_kinds(source: str, state_dict: StateDict):
    """Raises `ValueError` for the first tensor that is not an array of real numbers in memory."""
    for name, tensor in state_dict.items():
        kinds = {
            "without numbers (meta)": tensor.is_meta,
            "quantized": tensor.is_quantized,
            "sparse": tensor.layout != torch.strided,
            "complex": tensor.is_complex(),
        }
        for kind, is_it in kinds.items():
            if is_it:
                raise ValueError(f"{source}: {name} is {kind}, but weights must be dense real numbers.")


def _download_from_hub(repo_id: str) -> str:
    try:
        return snapshot_download(repo_id, allow_patterns=["*.safetensors", "*.safetensors.index.json"])
    except Exception as error:
        raise ValueError(
            f"{repo_id}: no such file or folder, nor a Hub repository that can be read ({first_line(error)})."
        ) from error


def _read_folder(folder: Path) -> StateDict:
    index = folder / "model.safetensors.index.json"
    names = _read_index(index) if index.exists() else sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        raise ValueError(f"{folder}: the folder has no .safetensors file.")
    tensors, file_of = {}, {}
    for file in names:
        for name, tensor in _read_safetensors(folder / file).items():
            if name in tensors:
                raise ValueError(f"{folder}: {name} is both in {file_of[name]} and in {file}.")
            tensors[name], file_of[name] = tensor, file
    return tensors


def _read_index(index: Path) -> list[str]:
    """Returns the names of the files in an index of safetensors files."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        is_usable = all(isinstance(name, str) and Path(name).name == name for name in names)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: not a readable index of safetensors files.") from error
    if not is_usable:
        raise ValueError(f"{index}: `weight_map` must map tensors to names of files, but got {reprlib.repr(names)}.")
    return sorted(names)


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}).") from error


def _read_pickle(path: Path):
    """Reads a PyTorch file without executing code from it; research checkpoints often contain their arguments."""
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        foreign = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        reason = f"{foreign[1]} in it would run code" if foreign else first_line(error)
        raise ValueError(f"{path}: not a readable PyTorch checkpoint of plain tensors ({reason}).") from error


def _choose_weights(path: Path, checkpoint, weights: str) -> StateDict:
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path}: holds a {type(checkpoint).__name__}, not tensors by name.")
    averaged = checkpoint.get("ema")
    averaged = averaged.get("module") if isinstance(averaged, dict) else None
    last = checkpoint.get("model")
    if weights == "averaged" and averaged is None:
        raise ValueError(f"{path}: has no averaged weights (`ema.module`); try --weights last.")
    if weights == "last" and last is None:
        raise ValueError(f"{path}: has no last weights (`model`); try --weights averaged.")
    preferred = [last] if weights == "last" else [averaged, last, checkpoint]
    return next(candidate for candidate in preferred if candidate is not None)


def _without_prefix(state_dict: StateDict) -> StateDict:
    """Removes the prefixes of wrappers (`module.`, `model.`, ...) from all names."""
    prefixes = {name[: name.index("backbone.")] for name in state_dict if "backbone." in name}
    prefix = min(prefixes, key=len, default="")
    if prefix and all(name.startswith(prefix) for name in state_dict):
        return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return state_dict


def shape_problems(tensors: StateDict, expected: StateDict) -> list[str]:
    """Lists tensors, by our names, that are missing, unexpected or of another shape; empty if all fit."""
    missing = [f"missing {name}" for name in expected if name not in tensors and not COUNTER.search(name)]
    unused = [f"unused {name}" for name in tensors if name not in expected and not COUNTER.search(name)]
    different = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    return missing + unused + different


def _check_numbers(tensors: StateDict, source: str):
    """Raises `ValueError` unless all tensors but counters hold finite floating-point numbers, in float32 as well."""
    for name, tensor in tensors.items():
        if COUNTER.search(name):
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{source}: {name} is {tensor.dtype}, but weights are floating-point numbers.")
        if not tensor.isfinite().all():
            raise ValueError(f"{source}: {name} has NaN or infinite values.")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{source}: {name} has values too large for float32, up to {tensor.abs().max():g}.")


@cache
def published_tensors(variant: str, dataset: str) -> StateDict:
    """Returns the tensors of a published model by our names, on the meta device."""
    with torch.device("meta"):
        return DETRPoseModel(DETRPoseConfig.from_variant(variant, skeleton=dataset)).state_dict()


def check_variant(
    tensors: StateDict, source: str, variant: str, dataset: str | None = None, parts: tuple[str, ...] = ("",)
):
    """Checks that tensors, given by our names, fit the chosen variant and dataset and have valid values.

    Args:
        tensors: name → tensor.
        source: source of the tensors, for the message.
        variant: "n", "s", "m", "l" or "x".
        dataset: "coco" or "crowdpose", or None if the tensors do not depend on it.
        parts: prefixes of the names that the tensors must cover.

    Raises:
        ValueError: with the variant and dataset that fit, or else the mismatches with the chosen ones, or the tensor
            with invalid values.
    """

    def problems(variant: str, dataset: str | None) -> list[str]:
        published = published_tensors(variant, dataset or "coco")
        return shape_problems(tensors, {name: published[name] for name in published if name.startswith(parts)})

    found = problems(variant, dataset)
    if not found:
        return _check_numbers(tensors, source)
    for other in itertools.product(VARIANTS, [dataset] if dataset is None else SCHEMAS):
        if not problems(*other):
            raise ValueError(f"{source} fits {_options(*other)}, not {_options(variant, dataset)}.")
    listed = "; ".join(found[:20]) + (f"; and {len(found) - 20} more" if len(found) > 20 else "")
    raise ValueError(f"{source} fits no published variant. Against {_options(variant, dataset)}: {listed}.")


def _options(variant: str, dataset: str | None) -> str:
    return f"--variant {variant}" + (f" --dataset {dataset}" if dataset else "")


def fill(model: DETRPoseForPoseEstimation, tensors: StateDict) -> list[str]:
    """Copies tensors that passed `check_variant` into a model, and returns the names of unused ones."""
    wanted = model.model.state_dict()
    model.model.load_state_dict({name: tensors.get(name, tensor) for name, tensor in wanted.items()})
    return [name for name in tensors if name not in wanted]
