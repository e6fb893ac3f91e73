"""The kernel cache: what is read from it is run, so nobody else may have written it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from subquad import Banded, attention
from subquad.kernels import build, cache

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are those of POSIX")
NAME = f"subquad_tiled_float32-{'0' * 24}.o"
CODE = b"machine code " * 100


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The cache directory of this test, with one entry."""
    directory = tmp_path / "kernels"
    monkeypatch.setenv("SUBQUAD_CACHE_DIR", str(directory))
    monkeypatch.delenv("SUBQUAD_CACHE", raising=False)
    cache.write(NAME, CODE)
    return directory


def refusal():
    with pytest.raises(OSError, match=r".") as caught, cache.opened():
        pytest.fail("a directory that cannot be trusted was opened")
    assert cache.read(NAME) is None
    cache.write(NAME, CODE)  # nothing is written, nothing is raised
    return str(caught.value)


def test_what_is_written_is_read_and_is_private(place):
    assert cache.read(NAME) == CODE
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / NAME).stat().st_mode) == 0o600
    assert os.listdir(place) == [NAME]


# --- the directory ----------------------------------------------------------------------------------------------------


def test_switched_off(place, monkeypatch):
    monkeypatch.setenv("SUBQUAD_CACHE", "0")
    assert "SUBQUAD_CACHE is 0" in refusal()


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o707, 0o777, 0o1777])
def test_a_directory_that_others_may_write_to(place, mode):
    place.chmod(mode)
    assert "written to by others" in refusal()


def test_a_directory_that_is_a_link(place, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(place)
    for path in (f"{tmp_path}/link", f"{tmp_path}/link/"):
        monkeypatch.setenv("SUBQUAD_CACHE_DIR", path)
        assert "link" in refusal()


def test_a_file_in_the_place_of_the_directory(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SUBQUAD_CACHE_DIR", str(tmp_path / "file"))
    refusal()
    assert (tmp_path / "file").read_bytes() == b""


def test_a_directory_of_another_user(place, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "belongs to another user" in refusal()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="root may write where nobody may")
def test_a_directory_given_away(place):
    os.chown(place, 12345, 12345)
    assert "belongs to another user" in refusal()


def test_anybody_may_rename_what_is_on_the_way(place, tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    assert "anybody may write to" in refusal()
    tmp_path.chmod(0o1777)  # as /tmp: chosen by name it will do, since only its owner can rename the directory
    assert cache.read(NAME) == CODE
    monkeypatch.delenv("SUBQUAD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "deeper" / "still"))
    assert "anybody may write to" in refusal()  # never by default


def test_a_link_on_the_way_does_not_hide_where_it_leads(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    monkeypatch.setenv("SUBQUAD_CACHE_DIR", str(tmp_path / "link" / "kernels"))
    assert "anybody may write to" in refusal()


def test_a_relative_path_would_follow_the_working_directory(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBQUAD_CACHE_DIR", "kernels")
    assert "absolute path; got 'kernels'" in refusal()


def test_the_default_is_the_users_own_cache(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    for name in ("SUBQUAD_CACHE_DIR", "SUBQUAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache, "_reached_safely", lambda path, shared: path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.directory() == "/home/someone/.cache/subquad"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.directory() == "/home/someone/.cache/subquad"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/mine")
    assert cache.directory() == "/var/mine/subquad"


def test_without_a_home_nothing_is_kept(monkeypatch, tmp_path):
    for name in ("SUBQUAD_CACHE_DIR", "SUBQUAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    monkeypatch.chdir(tmp_path)
    assert "no home directory" in refusal()
    assert os.listdir(tmp_path) == []


def test_a_home_in_a_shared_folder_is_not_used(monkeypatch, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for name in ("SUBQUAD_CACHE_DIR", "SUBQUAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(shared / "nobody"))
    assert f"lies in {shared}, which anybody may write to" in refusal()
    assert os.listdir(shared) == []


# --- its files --------------------------------------------------------------------------------------------------------


def ignored_then_replaced(place):
    """Whatever stands there is not read, and a good file takes its place."""
    assert cache.read(NAME) is None
    cache.write(NAME, CODE)
    assert cache.read(NAME) == CODE
    assert [name for name in os.listdir(place) if name.endswith(".tmp")] == []


@pytest.mark.parametrize("length", [0, 7, 31, 32, 500, len(CODE) + 31])
def test_a_file_cut_short(place, length):
    os.truncate(place / NAME, length)
    ignored_then_replaced(place)


def test_every_flipped_bit_is_seen(place):
    content = (place / NAME).read_bytes()
    for at in range(0, len(content) * 8, 37):
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        (place / NAME).write_bytes(damaged)
        assert cache.read(NAME) is None
    ignored_then_replaced(place)


def test_a_good_file_under_another_name(place):
    other = NAME.replace("tiled", "gathered")
    (place / other).write_bytes((place / NAME).read_bytes())
    assert cache.read(other) is None


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_link_to_a_good_file(place, tmp_path, kind):
    (place / NAME).rename(tmp_path / "elsewhere")
    (os.symlink if kind == "soft" else os.link)(tmp_path / "elsewhere", place / NAME)
    ignored_then_replaced(place)
    assert (tmp_path / "elsewhere").read_bytes() == (place / NAME).read_bytes()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_to(place, mode):
    (place / NAME).chmod(mode)
    ignored_then_replaced(place)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="root may write where nobody may")
def test_a_file_of_another_user(place):
    os.chown(place / NAME, 12345, 12345)
    ignored_then_replaced(place)


def test_a_pipe_does_not_hold_the_caller_up(place):
    (place / NAME).unlink()
    os.mkfifo(place / NAME, 0o600)
    ignored_then_replaced(place)


def test_a_directory_in_the_place_of_a_file(place):
    (place / NAME).unlink()
    (place / NAME).mkdir()
    assert cache.read(NAME) is None
    cache.write(NAME, CODE)
    assert cache.read(NAME) is None
    assert os.listdir(place) == [NAME]


def test_a_file_that_cannot_be_read(place, monkeypatch):
    plain = os.open

    def refuse(path, *args, **options):
        if path == NAME:
            raise PermissionError(13, "Permission denied", path)
        return plain(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert cache.read(NAME) is None


def test_a_file_too_large_to_be_a_kernel_is_not_read(place):
    os.truncate(place / NAME, 1 << 40)  # nothing but a hole: reading it would need a terabyte
    ignored_then_replaced(place)


def test_a_directory_swapped_after_it_was_checked_is_not_followed(place, tmp_path):
    """Files are opened from the handle that was checked, not by the path once more."""
    with cache.opened() as folder:
        place.rename(tmp_path / "moved")
        place.mkdir()
        (place / NAME).write_bytes(b"of somebody else")
        handle = folder.open(NAME, os.O_RDONLY)
        assert os.read(handle, 1 << 20).endswith(CODE)
        os.close(handle)


def test_a_write_that_fails_leaves_nothing_behind(place, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *paths, **where: (_ for _ in ()).throw(OSError("disk full")))
    cache.write(NAME.replace("tiled", "scores"), CODE)
    assert os.listdir(place) == [NAME]


def test_a_damaged_kernel_is_compiled_anew(place):
    """The whole way: a process finds a damaged file, loads a right kernel, and leaves a good file."""
    name = f"subquad_peak_float32-{build.source_digest()}.o"
    (place / name).write_bytes(b"\0" * 5000)
    code = "from subquad.kernels import load; load('peak', 'float32'); print('loaded')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr
    assert cache.read(name).startswith(b"\x7fELF" if sys.platform == "linux" else b"")


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_only_the_librarys_own_files_are_listed_and_deleted(place):
    (place / "notes.txt").write_text("mine")
    (place / "subquad_tiled_float32-short.o").write_text("mine")
    (place / f"{NAME}.0123456789abcdef.tmp").write_bytes(b"half a file")
    (place / NAME.replace("0", "1")).mkdir()
    with cache.opened() as folder:
        assert [entry.name for entry in folder.entries()] == [NAME, f"{NAME}.0123456789abcdef.tmp"]
        assert folder.entries()[0] == (NAME, len(CODE) + 32, "0" * 24)
    assert len(cache.clear()) == 2
    assert sorted(os.listdir(place)) == sorted(["notes.txt", "subquad_tiled_float32-short.o", NAME.replace("0", "1")])


def test_functions_of_the_users_own_are_never_kept(tmp_path, monkeypatch):
    """Numba compiles them in this process, and neither it nor the library writes them anywhere."""
    x = np.ones((4, 8), np.float32)
    attention(x, x, x, Banded(1))  # loads the kernels
    monkeypatch.setenv("SUBQUAD_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))

    def bent(score, b, h, i, j):
        return score * 0.5

    assert (attention(x, x, x, Banded(1), score_mod=bent) == 1).all()
    assert [path for path in Path(tmp_path).rglob("*") if path.is_file()] == []


def test_the_name_tells_all_that_shapes_the_code(monkeypatch):
    import llvmlite.binding as llvm

    found = {build.source_digest.__wrapped__()}
    for target, name, value in (
        (llvm, "get_host_cpu_name", lambda: "another-cpu"),
        (llvm, "get_default_triple", lambda: "another-triple"),
        (sys, "version", "3.99"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            found.add(build.source_digest.__wrapped__())
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda package: "99")
        found.add(build.source_digest.__wrapped__())
    assert len(found) == 5
