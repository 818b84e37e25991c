"""Writes converted models as folders for `from_pretrained`."""

import logging
import os
from typing import NamedTuple

from huggingface_hub import create_repo, upload_folder

from ..files import whole_folder
from ..image_processing_detrpose import DETRPoseImageProcessor
from ..loading import first_line
from ..model_card import model_card
from ..modeling_detrpose import DETRPoseForPoseEstimation

logger = logging.getLogger(__name__)


class Origin(NamedTuple):
    """Where weights come from, for the model card.

    Args:
        text: A sentence or two.
        license: The Hub's name of their license; the default of [`model_card`] if not given.
    """

    text: str
    license: str | None = None


def save_converted(
    model: DETRPoseForPoseEstimation,
    output: str | os.PathLike,
    origin: Origin,
    repo_id: str | None = None,
    replace: bool = False,
):
    """Writes weights, configuration, image processor, code and model card, and optionally pushes them.

    Args:
        model: The converted model.
        output: Folder to write, whole or not at all.
        origin: Where the weights come from.
        repo_id: Hub repository to upload the folder to; created if it does not exist.
        replace: Whether to replace an existing folder.

    Raises:
        FileExistsError: if `output` exists already and is not an empty folder, unless `replace`.
        OSError: if writing or pushing fails.
    """
    with whole_folder(output, replace) as folder:
        model.save_pretrained(folder)
        DETRPoseImageProcessor.for_model(model.config).save_pretrained(folder)
        card = model_card(model.config, repo_id or str(output), origin.text, license=origin.license)
        (folder / "README.md").write_text(card, encoding="utf-8")
    logger.info("wrote %s", output)
    if repo_id is None:
        return
    try:
        create_repo(repo_id, exist_ok=True)
        upload_folder(repo_id=repo_id, folder_path=output, commit_message="Upload DETRPose")
    except Exception as error:  # the Hub and the network raise their own kinds
        raise OSError(f"{output} is written, but pushing to {repo_id} failed: {first_line(error)}") from error
    logger.info("pushed to %s", repo_id)
