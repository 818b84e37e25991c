"""Fixtures shared by several test files: converted reference cases."""

import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the Hub; read when huggingface_hub is imported

import reference  # noqa: E402
from transformers_detrpose.commands import convert  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def signals():
    """Handles signals as in a terminal: jobs in the background or under nohup ignore some, and so do their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> Callable[[str], Path]:
    """Converts a reference case with the command and returns its folder, which tests must not modify."""

    @cache
    def convert_case(name: str) -> Path:
        case, folder = reference.load_case(name), tmp_path_factory.mktemp(name)
        torch.save({"model": case.state_dict()}, folder / "official.pth")
        options = ["--variant", case.variant, "--dataset", case.dataset, "--checkpoint", str(folder / "official.pth")]
        assert convert.main([*options, "--output", str(folder / name)]) == 0
        return folder / name

    return convert_case
