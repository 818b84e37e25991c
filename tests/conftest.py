"""What several test files share: the conversion commands on the path, and converted reference cases."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

# Last, because examples/evaluate.py must not hide the library of that name.
sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("conversion", "examples"))

import convert_detrpose  # noqa: E402
import reference  # noqa: E402


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> Callable[[str], Path]:
    """Converts a reference case by the command and returns its folder, which tests must not change."""

    @cache
    def convert(name: str) -> Path:
        case, folder = reference.load_case(name), tmp_path_factory.mktemp(name)
        torch.save({"model": case.state_dict()}, folder / "official.pth")
        options = ["--variant", case.variant, "--dataset", case.dataset, "--checkpoint", str(folder / "official.pth")]
        assert convert_detrpose.main([*options, "--output", str(folder / name)]) == 0
        return folder / name

    return convert
