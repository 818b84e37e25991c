"""The command `detrpose`, and the shared parts of its subcommands."""

import runpy
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

import pytest

import detrpose_cli
from transformers_detrpose.commands.command_line import CommandError, add_num_workers, count, run_command

COMMANDS = Path(detrpose_cli.__file__).parent / "transformers_detrpose" / "commands"


@pytest.fixture
def module(monkeypatch):
    """Makes `detrpose predict` call a function in place of the command's main."""

    def use(main):
        monkeypatch.setattr(detrpose_cli.importlib, "import_module", lambda name: Namespace(main=main))

    return use


class TestDispatcher:
    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
    def test_help_lists_every_command(self, arguments, capsys):
        assert detrpose_cli.main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        for name, (_, summary) in detrpose_cli.COMMANDS.items():
            assert any(line.split() == [name, *summary.split()] for line in lines)

    def test_help_imports_nothing_slow(self):
        program = "import sys, detrpose_cli; detrpose_cli.main([]); print(*sys.modules)"
        process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "usage: detrpose" in process.stdout
        assert not {"torch", "transformers", "transformers_detrpose"} & set(process.stdout.splitlines()[-1].split())

    def test_every_command_has_a_module(self):
        for module, _ in detrpose_cli.COMMANDS.values():
            assert "\ndef main(" in (COMMANDS / f"{module}.py").read_text(encoding="utf-8")

    def test_unknown_command(self, capsys):
        assert detrpose_cli.main(["fly", "--help"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "there is no command 'fly'" in line and "predict" in line

    def test_the_rest_of_the_line_is_the_commands(self, module):
        given = []
        module(lambda argv: given.extend(argv) or 7)
        assert detrpose_cli.main(["predict", "--model", "a", "--help"]) == 7
        assert given == ["--model", "a", "--help"]

    @pytest.mark.parametrize(
        "package, extra",
        [("accelerate", "train"), ("faster_coco_eval.core", "train"), ("onnxruntime", "onnx"), ("optimum", "optimum")],
    )
    def test_a_package_that_is_not_installed(self, package, extra, module, capsys):
        def main(argv):
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

        module(main)
        assert detrpose_cli.main(["predict"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("detrpose predict: error: ")
        assert package.partition(".")[0] in line and f'pip install "transformers-detrpose[{extra}]"' in line

    def test_other_import_errors_are_bugs(self, module):
        def main(argv):
            raise ImportError("cannot import name 'x' from 'y'", name="y")

        module(main)
        with pytest.raises(ImportError):
            detrpose_cli.main(["predict"])

    def test_as_a_module(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["transformers_detrpose", "fly"])
        with pytest.raises(SystemExit) as exit:
            runpy.run_module("transformers_detrpose", run_name="__main__")
        assert exit.value.code == 2
        assert "there is no command 'fly'" in capsys.readouterr().err

    def test_scripts_name_existing_commands(self):
        root = Path(__file__).parents[2]
        started = []
        for script in [*(root / "examples").glob("*.py"), *(root / "conversion").glob("*.py")]:
            text = script.read_text(encoding="utf-8")
            if "detrpose_cli" in text:
                (name,) = (line.split('"')[1] for line in text.splitlines() if "main([" in line)
                started.append(name)
        assert len(started) == len(set(started)) >= 10
        assert set(started) <= set(detrpose_cli.COMMANDS)


class TestRunCommand:
    def test_success(self):
        given = []
        assert run_command("detrpose x", given.append, Namespace(a=1)) == 0
        assert given == [Namespace(a=1)]

    @pytest.mark.parametrize("error", [CommandError("no\nnot at all"), ValueError("no"), OSError("no")])
    def test_mistakes_are_one_line(self, error, capsys):
        def fail(arguments):
            raise error

        assert run_command("detrpose x", fail, Namespace()) == 1
        assert capsys.readouterr().err == "detrpose x: error: no\n"

    def test_bugs_are_shown(self):
        with pytest.raises(KeyError):
            run_command("detrpose x", lambda arguments: {}["missing"], Namespace())

    def test_interrupted(self):
        def interrupt(arguments):
            raise KeyboardInterrupt

        assert run_command("detrpose x", interrupt, Namespace()) == 130


def test_count():
    assert count("12") == 12
    for text in ("0", "-1", "1.5", "x", ""):
        with pytest.raises(ArgumentTypeError, match="not a whole number of at least 1"):
            count(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "many"])
def test_number_of_workers(text, capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # PyTorch warns of more
    parser = ArgumentParser()
    add_num_workers(parser)
    assert parser.parse_args([]).num_workers == 2
    assert parser.parse_args(["--num-workers", "0"]).num_workers == 0
    with pytest.raises(SystemExit):
        parser.parse_args(["--num-workers", text])
    assert f"{text} is not a whole number of at least 0" in capsys.readouterr().err
