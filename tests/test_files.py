import errno
import mmap
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prune_export.api import export
from prune_export.errors import BadInputError, PruneExportError
from prune_export.files import (
    check_destination,
    check_space,
    full_disk_explained,
    release_pages,
    scratch_folder,
    sha256,
    staged,
)


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with staged(target, force=False) as stage:
        (stage / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_early_end_leaves_the_old_content(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("1")
    with pytest.raises(stop), staged(target, force=True) as stage:
        (stage / "new").write_text("2")
        raise stop
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("1")
    with staged(target, force=True) as stage:
        (stage / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PruneExportError, match=r"No space left on device: .* nothing was left there") as caught:
        with staged(tmp_path / "out", force=False):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_writers_own_error_is_explained_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="of another kind"), full_disk_explained(tmp_path):
        raise RuntimeError("of another kind")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(PruneExportError, match="No space left on device: 0 B free"), full_disk_explained(tmp_path):
        raise RuntimeError("serialization failed")


def test_a_disk_that_is_full_of_scratch_is_explained_though_the_scratch_goes_first(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's writer has errors of its own, and what the gate needs takes more than its result."""

    def failing(plain: Path, stage: Path, **_: object) -> None:
        assert plain.is_dir()
        raise RuntimeError("Check 'm_bin_file' failed")

    def usage(path: Path) -> object:
        return shutil._ntuple_diskusage(1 << 40, 0, 0 if list(tmp_path.glob(".fp32-*/fp32")) else 1 << 40)

    monkeypatch.setattr("prune_export.export.weights.compress", failing)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(PruneExportError, match=rf"No space left on device: 0 B free where {tmp_path / 'out'} lies"):
        export(str(checkpoint), tmp_path / "out", precision="int8")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    with pytest.raises(RuntimeError, match="m_bin_file"):  # something else
        export(str(checkpoint), tmp_path / "out", precision="int8")


def test_what_killed_processes_left_goes_after_a_day(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old = time.time() - 2 * 24 * 3600
    names = {
        "dead": f".out.{ended.pid}-abcdefgh",
        "scratch": f".fp32-{ended.pid}-abcdefgh",
        "alive": f".out.{os.getpid()}-abcdefgh",
        "replaced": ".out.old.abcdefgh",  # may hold the only copy
        "foreign": f".out.{ended.pid}",
        "young": f".out.{ended.pid}-hgfedcba",
    }
    for kind, name in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        if kind != "young":
            os.utime(tmp_path / name, (old, old))
    with staged(tmp_path / "out", force=False) as stage:
        assert stage.name.startswith(f".out.{os.getpid()}-")
        with scratch_folder(tmp_path, ".fp32-") as folder:
            assert folder.name.startswith(f".fp32-{os.getpid()}-")
    left = {path.name for path in tmp_path.iterdir()} - {"out"}
    assert left == {names[kind] for kind in ("alive", "replaced", "foreign", "young")}


def test_force_deletes_nothing_but_model_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_text("x")
    with pytest.raises(BadInputError, match="--force will not delete it"):
        check_destination(tmp_path / "photos", force=True)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "photos")
    with pytest.raises(BadInputError, match="--force will not delete it"):
        check_destination(tmp_path, force=True)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_end_between_the_two_renames_restores_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    rename = Path.rename

    def stopped(self: Path, to: Path) -> Path:
        if to == target and ".old." not in str(self):
            raise stop
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(stop), staged(target, force=True) as stage:
        (stage / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_destinations_are_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "full" / "config.json").write_text("{}")
    with pytest.raises(BadInputError, match="--force"):
        check_destination(tmp_path / "full", force=False)
    check_destination(tmp_path / "full", force=True)
    with pytest.raises(BadInputError, match="is a file"):
        check_destination(tmp_path / "full" / "file", force=True)
    with pytest.raises(BadInputError, match="not a writable directory"):
        check_destination(tmp_path / "full" / "file" / "below", force=False)
    with pytest.raises(BadInputError, match="free on that disk, about 1024 GiB needed"):
        check_space(tmp_path, 2**40)
    check_space(tmp_path / "not" / "there", 1)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def resident_bytes(path: Path) -> int:
    """Of the one mapping of a file, as the kernel counts it."""
    table = Path("/proc/self/smaps").read_text()
    (size,) = re.findall(rf" {re.escape(str(path))}\n(?:\w+:.*\n)*?Rss:\s+(\d+) kB", table)
    return 1024 * int(size)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux only")
def test_released_pages_are_no_longer_resident_and_come_back(tmp_path: Path) -> None:
    size = 4 << 20
    for name in ("read", "written"):
        (tmp_path / name).write_bytes(b"x" * size)
    linked = tmp_path / "model"
    linked.mkdir()
    for name in ("read", "written"):
        (linked / name).symlink_to(tmp_path / name)
    with (tmp_path / "read").open("rb") as one, (tmp_path / "written").open("rb") as other:
        read = mmap.mmap(one.fileno(), 0, access=mmap.ACCESS_READ)
        written = mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_COPY)
        assert read.find(b"y") == written.find(b"y") == -1
        written[0] = ord("y")
        release_pages(linked)
        assert resident_bytes(tmp_path / "read") < size / 8
        assert resident_bytes(tmp_path / "written") > size / 2
        assert written[:2] == b"yx"
        assert read[:] == b"x" * size
        read.close()
        written.close()
