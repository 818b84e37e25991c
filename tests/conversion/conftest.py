"""What the tests of both conversion commands share."""

import pytest
from safetensors.torch import load_file

from official_layouts import CASE
from transformers_detrpose.commands import convert as convert_detrpose
from transformers_detrpose.commands import convert_dfine

NAMES = {convert_detrpose: "convert", convert_dfine: "convert-dfine"}


@pytest.fixture(scope="session")
def official():
    """The tensors of the reference checkpoint; tests must not edit them."""
    return CASE.state_dict()


@pytest.fixture
def output(tmp_path):
    return tmp_path / "results" / "model"


@pytest.fixture
def convert(output):
    """Runs a command on a checkpoint and returns the tensors that it writes."""

    def run(script, checkpoint, *options, output=output):
        assert script.main(["--checkpoint", str(checkpoint), "--output", str(output), *options]) == 0
        return load_file(output / "model.safetensors")

    return run


@pytest.fixture
def refusal(output, capsys):
    """Runs a command that must fail without a trace, and returns the line that says why."""

    def run(script, checkpoint, *options):
        assert script.main(["--checkpoint", str(checkpoint), "--output", str(output), *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        name, message = line.split(": error: ")
        assert name == f"detrpose {NAMES[script]}"
        assert not list(output.parent.glob("*"))
        return message

    return run
