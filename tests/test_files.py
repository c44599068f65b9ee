import errno
from pathlib import Path

import pytest

from prune_export.errors import BadInputError, PruneExportError
from prune_export.files import check_destination, check_space, sha256, staged


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
    (target / "old").write_text("1")
    with pytest.raises(stop), staged(target, force=True) as stage:
        (stage / "new").write_text("2")
        raise stop
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("1")
    with staged(target, force=True) as stage:
        (stage / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PruneExportError, match="No space left on device; nothing was left there") as caught:
        with staged(tmp_path / "out", force=False):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_destinations_are_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
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
