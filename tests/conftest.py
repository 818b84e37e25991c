"""Fixtures shared by several test files: converted reference cases."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the Hub; read when huggingface_hub is imported

from accelerate.state import AcceleratorState  # noqa: E402

import reference  # noqa: E402
from transformers_detrpose.commands import convert  # noqa: E402
from transformers_detrpose.commands.command_line import CommandError, check_device  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="torch device of the tests that run a model, such as cuda")


def pytest_configure(config):
    """Checks the device, chooses it in transformers' own tests, too, and computes in full float32 on it.

    Processes that test side by side share the CPU.
    """
    name = config.getoption("--device")
    try:
        check_device(name)
    except CommandError as error:
        raise pytest.UsageError(str(error)) from error
    os.environ["TRANSFORMERS_TEST_DEVICE"] = name  # read when transformers.testing_utils is imported
    # Where there is a GPU, accelerate would choose it, but most tests of training compare bit by bit.
    os.environ["ACCELERATE_USE_CPU"] = "true"
    num_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def device(pytestconfig) -> torch.device:
    """The device of the models, from `--device`."""
    return check_device(pytestconfig.getoption("--device"))


@pytest.fixture
def accelerate_device(device, monkeypatch) -> Iterator[torch.device]:
    """Lets accelerate use the device, too."""
    if device.type != "cpu":
        monkeypatch.delenv("ACCELERATE_USE_CPU")
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(device))
    AcceleratorState._reset_state(reset_partial_state=True)  # which a process normally has once
    yield device
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", autouse=True)
def signals():
    """Handles signals as in a terminal: jobs in the background or under nohup ignore some, and so do their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def quiet_log():
    """Undoes how commands show the log, in earlier tests and in fixtures: what the library logs would be printed."""
    logger = logging.getLogger("transformers_detrpose")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


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
