"""Downloads the published weights from the authors' Hub repositories or, failing that, their GitHub release."""

import tempfile
import time
from concurrent import futures
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

from huggingface_hub import constants, hf_hub_url
from tqdm import tqdm

from ..loading import first_line
from ..modeling_detrpose import DETRPoseForPoseEstimation
from ..variants import DETRPOSE_VARIANTS, model_name
from .detrpose import convert_detrpose, describe_origin
from .saving import save_converted

HUB_ID = "SebasJanampa/DETRPose_{variant}_{dataset}"
ECPOSE_RELEASE = "https://github.com/capsule2077/edgecrafter/releases/download/edgecrafterv1"
RELEASE = "https://github.com/SebastianJanampa/DETRPose/releases/download/model_weights"
# Seconds within which a source must respond, and seconds without data after which a download has failed.
PATIENCE, STALL = 5.0, 30.0
CHUNK = 2**20  # bytes


def published_folder(variant: str = "n", dataset: str = "coco") -> Path:
    """Returns the folder of a published model in the Hugging Face cache, downloading it on first use.

    Args:
        variant: Size of the model, a key of `VARIANTS`.
        dataset: "coco" or "crowdpose".

    Raises:
        OSError: if the model is not in the cache and `download_model` fails, or if the cache is not writable.
    """
    folder = Path(constants.HF_ASSETS_CACHE) / "transformers-detrpose" / f"{model_name(variant).lower()}-{dataset}"
    if not folder.is_dir():
        save_converted(download_model(variant, dataset), folder, describe_origin(variant, dataset), replace=True)
    return folder


def download_model(variant: str, dataset: str) -> DETRPoseForPoseEstimation:
    """Downloads published weights and returns their model.

    The Hub is preferred to the GitHub release. Both are queried at once and have `PATIENCE` seconds to respond. Weights
    that cannot be downloaded completely or converted count as unavailable. `HF_HUB_OFFLINE` and `HF_ENDPOINT` are
    respected.

    Args:
        variant: Size of the model, a key of `VARIANTS`.
        dataset: "coco" or "crowdpose"; only "coco" for ECPose.

    Raises:
        OSError: if no source provides the weights; the message says why.
    """
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set, which forbids downloading the published weights")
    deadline = time.monotonic() + PATIENCE
    answers = {url: _ask(url) for url in published_urls(variant, dataset)}
    problems = []
    for url, answer in answers.items():
        futures.wait([answer], max(0.0, deadline - time.monotonic()))
        try:
            if not answer.done():
                raise OSError(f"no answer within {PATIENCE:g} seconds")
            answer.result()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / url.rsplit("/", 1)[-1]
                _download(url, path)
                return convert_detrpose(str(path), variant, dataset)
        except (OSError, ValueError, HTTPException) as error:
            problems.append(f"{url}: {first_line(error)}")
    raise OSError("; ".join(problems))


def published_urls(variant: str, dataset: str) -> list[str]:
    """Returns the URLs of the weights of a published model, the preferred one first.

    Those of ECPose come from the release alone, whose license is known.
    """
    if variant not in DETRPOSE_VARIANTS:
        if dataset != "coco":
            raise OSError(f"no {model_name(variant)} for {dataset} is published")
        return [f"{ECPOSE_RELEASE}/{variant.replace('-', '_')}.pth"]
    repo_id = HUB_ID.format(variant=variant.upper(), dataset=dataset.upper())
    suffix = "" if dataset == "coco" else f"_{dataset}"
    return [hf_hub_url(repo_id, "model.safetensors"), f"{RELEASE}/detrpose_hgnetv2_{variant}{suffix}.pth"]


def _ask(url: str) -> futures.Future:
    """Checks in a thread whether a URL exists, because DNS lookups have no timeout."""
    answer = futures.Future()

    def ask():
        try:
            with urlopen(Request(url, method="HEAD"), timeout=STALL):
                answer.set_result(None)
        except Exception as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    return answer


def _download(url: str, path: Path):
    """Downloads a URL to a file; raises `OSError` if the download is incomplete."""
    with urlopen(url, timeout=STALL) as response, open(path, "wb") as file:
        length = int(response.headers.get("Content-Length", 0))
        with tqdm(desc=path.name, total=length or None, unit="B", unit_scale=True) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if bar.n < length:
            raise OSError(f"the download ended after {bar.n} of {length} bytes")
