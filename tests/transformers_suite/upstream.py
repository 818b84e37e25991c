"""Imports the test mixins that transformers ships in its source distribution (its wheel has none).

Set TRANSFORMERS_SOURCE to the unpacked source distribution of the installed version, as from
`pip download --no-deps --no-binary transformers transformers==<version>`.
"""

import importlib
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = "transformers_tests"


class AbsentModules(MetaPathFinder, Loader):
    """Stands in for what the mixins import although the source distribution leaves it out.

    Classes come out empty, other names as empty dictionaries: nothing that our tests run makes use of them.
    """

    def find_spec(self, fullname, path=None, target=None):
        is_absent = fullname.startswith(PACKAGE + ".") or fullname == "fetch_hub_objects_for_ci"
        return ModuleSpec(fullname, self, is_package=True) if is_absent else None

    def exec_module(self, module):
        def stand_in(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {}) if name[0].isupper() else {}

        module.__getattr__ = stand_in


def load(name: str) -> ModuleType:
    """Imports one of transformers' own test modules, such as "test_modeling_common".

    Skips the test file that calls it if TRANSFORMERS_SOURCE is not set.
    """
    source = os.environ.get("TRANSFORMERS_SOURCE")
    if not source:
        reason = "TRANSFORMERS_SOURCE is not set to an unpacked source distribution of transformers"
        pytest.skip(reason, allow_module_level=True)
    tests = Path(source) / "tests"
    if not (tests / f"{name}.py").is_file():
        raise FileNotFoundError(f"TRANSFORMERS_SOURCE={source} does not contain tests/{name}.py.")
    if PACKAGE not in sys.modules:
        package = sys.modules[PACKAGE] = ModuleType(PACKAGE)
        package.__path__ = [str(tests)]
        sys.meta_path.append(AbsentModules())  # asked last, after the real files
    return importlib.import_module(f"{PACKAGE}.{name}")
