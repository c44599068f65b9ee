"""What C code prints in the block is gone; what is printed around it is not."""

from __future__ import annotations

import ctypes

import pytest

from prune_export.prune.native_output import dropped


def test_only_native_output_of_the_block_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    library = ctypes.CDLL(None)
    library.printf(b"native before\n")
    print("python before")
    with dropped():
        library.printf(b"native inside\n")
    library.printf(b"native after\n")
    library.fflush(None)
    print("python after")
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "native after", "native before", "python after", "python before",
    ]  # fmt: skip


def test_output_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="broken"), dropped():
        raise RuntimeError("broken")
    ctypes.CDLL(None).printf(b"still there\n")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "still there\n"
