"""What the process frees is kept, where the C library can be told so."""

import ctypes
from types import SimpleNamespace

import pytest

from transformers_detrpose import memory


def test_glibc_takes_all_settings(monkeypatch):
    library, taken = ctypes.CDLL(None), []
    if not hasattr(library, "gnu_get_libc_version"):
        pytest.skip("the C library is not glibc")

    def mallopt(parameter, value):
        taken.append(library.mallopt(parameter, value))

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    memory.keep_freed_memory()
    assert taken == [1, 1, 1]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_another_c_library_is_left_alone(monkeypatch, platform):
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    memory.keep_freed_memory()
