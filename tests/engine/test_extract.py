"""Archives are unpacked as they are, or refused as a whole."""

import io
import stat
import subprocess
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from ovms_kernel.errors import BadRequest
from ovms_kernel.fetch.archive import ENGINE, extract
from ovms_kernel.values import Progress
from tests.archives import TOKENIZERS_LINK, linux_archive, windows_archive


def ignore(_: Progress) -> None:
    pass


def tar_of(path: Path, *members: tuple[str, bytes | str, bytes]) -> Path:
    """Write a tar of members: name, what (``b"0"`` file, ``b"2"`` link and its target, other types), data."""
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type = kind if isinstance(kind, bytes) else kind.encode()
            if info.type == tarfile.REGTYPE:
                info.size = len(data)
            else:
                info.linkname = data.decode()
            tar.addfile(info, io.BytesIO(data) if info.size else None)
    return path


def zip_of(path: Path, *members: tuple[str, bytes | str, bytes]) -> Path:
    """Write a zip of the same members."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, kind, data in members:
            info = zipfile.ZipInfo(name)
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            modes = {b"0": stat.S_IFREG | 0o644, b"2": stat.S_IFLNK | 0o777, b"3": stat.S_IFCHR, b"6": stat.S_IFIFO}
            info.external_attr = modes[kind if isinstance(kind, bytes) else kind.encode()] << 16
            archive.writestr(info, data)
    return path


FILE, LINK, DEVICE, PIPE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
HOSTILE = {
    "leads out": [("ovms/../../evil", FILE, b"x")],
    "is absolute": [("/tmp/evil", FILE, b"x")],
    "is absolute on Windows": [("C:/evil", FILE, b"x")],
    "is a share": [("\\\\host\\evil", FILE, b"x")],
    "has a link to an absolute path": [("ovms/l", LINK, b"/etc/passwd")],
    "has a link out": [("ovms/l", LINK, b"../../etc/passwd")],
    "has a link to the parent of all": [("l", LINK, b"..")],
    "writes behind a link": [("ovms/l", LINK, b"."), ("ovms/l/evil", FILE, b"x")],
    "writes over a link": [("ovms/l", LINK, b"target"), ("ovms/l", FILE, b"x")],
    "has a link through a link": [("d", LINK, b"."), ("ovms/l", LINK, b"../d/../x"), ("f", FILE, b"")],
    "has a file in a file": [("ovms", FILE, b"x"), ("ovms/evil", FILE, b"x")],
    "has a name twice": [("ovms/f", FILE, b"x"), ("ovms/f", FILE, b"y")],
    "has a device": [("ovms/null", DEVICE, b"")],
    "has a pipe": [("ovms/pipe", PIPE, b"")],
    "has an empty link": [("ovms/l", LINK, b""), ("f", FILE, b"x")],
    "is empty": [],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_what_no_honest_archive_holds_is_refused_and_nothing_lies_outside(tmp_path: Path, make, members) -> None:
    room = tmp_path / "room"
    room.mkdir()
    archive = make(room / ("a.zip" if make is zip_of else "a.tar.gz"), *members)
    into = room / "deep" / "into"
    with pytest.raises(BadRequest, match=r"archive a\.(zip|tar\.gz) .* not unpacked"):
        extract(archive, into, ignore)
    outside = {path for path in room.rglob("*") if not path.is_relative_to(into)}
    assert outside == {archive, room / "deep"}


ELSEWHERE = {
    "leads elsewhere": [("ovms/l", LINK, b"/etc/passwd")],
    "leads out of the top folder": [("ovms/l", LINK, b"/ovms/../../etc/passwd")],
    "only begins like it": [("ovms/l", LINK, b"/ovms2/x"), ("ovms2/x", FILE, b"x")],
    "leads to the top folder from beside it": [("l", LINK, b"/ovms/x"), ("ovms/x", FILE, b"x")],
    "leads through a link": [("ovms/d", LINK, b"/ovms"), ("ovms/l", LINK, b"/ovms/d/../../x"), ("f", FILE, b"x")],
}


@pytest.mark.parametrize("members", ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_an_absolute_link_that_is_not_below_the_archives_own_folder_is_refused(tmp_path: Path, make, members) -> None:
    archive = make(tmp_path / ("a.zip" if make is zip_of else "a.tar.gz"), *members)
    with pytest.raises(BadRequest, match="not unpacked"):
        extract(archive, tmp_path / "into", ignore)


@pytest.mark.needs_posix  # Windows makes links for administrators only, and its archives hold none
def test_an_absolute_link_in_a_zip_becomes_relative_too(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", ("ovms/x", FILE, b"x"), ("ovms/a/b/l", LINK, b"/ovms/x"))
    extract(archive, tmp_path / "into", ignore)
    assert (tmp_path / "into/ovms/a/b/l").readlink() == Path("../../x")


def test_a_hard_link_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", ("f", FILE, b"x"), ("g", tarfile.LNKTYPE, b"f"))
    with pytest.raises(BadRequest, match="hard link 'g'"):
        extract(archive, tmp_path / "into", ignore)


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_bombs_by_size_count_and_ratio_are_refused(tmp_path: Path, make) -> None:
    suffix = ".zip" if make is zip_of else ".tar.gz"
    many = make(tmp_path / f"many{suffix}", *((f"f{number}", FILE, b"x") for number in range(50)))
    with pytest.raises(BadRequest, match="more than 20 entries"):
        extract(many, tmp_path / "1", ignore, replace(ENGINE, count=20))
    big = make(tmp_path / f"big{suffix}", ("f", FILE, bytes(70 << 20)))
    with pytest.raises(BadRequest, match="more than 10 MiB"):
        extract(big, tmp_path / "2", ignore, replace(ENGINE, size=10 << 20))
    with pytest.raises(BadRequest, match="grows more than 200 fold"):
        extract(big, tmp_path / "3", ignore)
    for number in (2, 3):
        assert not [path for path in (tmp_path / str(number)).rglob("*") if path.stat().st_size > 0]


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    good = tmp_path / "a.tar.gz"
    linux_archive(good, padding=200_000)
    data = good.read_bytes()
    for number, bad in enumerate((data[: len(data) // 2], b"\x1f\x8b" + bytes(100), b"<html>", b"")):
        good.write_bytes(bad)
        with pytest.raises(BadRequest, match="not unpacked"):
            extract(good, tmp_path / str(number), ignore)
    bad_zip = tmp_path / "a.zip"
    windows_archive(bad_zip)
    spoilt = bytearray(bad_zip.read_bytes())
    spoilt[48] ^= 0xFF
    bad_zip.write_bytes(spoilt)
    with pytest.raises(BadRequest, match="is damaged"):
        extract(bad_zip, tmp_path / "zip", ignore)


@pytest.mark.needs_posix
def test_d2_5_a_linux_release_is_unpacked_with_its_links_and_modes(tmp_path: Path) -> None:
    linux_archive(tmp_path / "a.tar.gz", padding=20 << 20)
    told: list[Progress] = []
    into = tmp_path / "with space und ümlaut"
    extract(tmp_path / "a.tar.gz", into, told.append)
    library = into / "ovms/lib/libopenvino.so"
    assert library.is_symlink()
    assert library.read_bytes() == (into / "ovms/lib/libopenvino.so.2630").read_bytes()
    assert (into / "ovms/bin/ovms").stat().st_mode & 0o777 == 0o755
    assert (into / "ovms/LICENSE").stat().st_mode & 0o111 == 0
    positions = [each.completed for each in told]
    assert positions == sorted(positions)
    assert told[-1].completed == told[-1].total > 0
    assert len(told) > 2
    # The same as tar makes of it, but for the one absolute link, which means the archive's own folder.
    other = tmp_path / "tar"
    other.mkdir()
    subprocess.run(["tar", "xf", tmp_path / "a.tar.gz", "-C", other], check=True)
    expected = tree(other)
    assert expected[f"ovms/{TOKENIZERS_LINK}"] == Path("/ovms/lib/libopenvino_tokenizers.so")
    expected[f"ovms/{TOKENIZERS_LINK}"] = Path("../../../libopenvino_tokenizers.so")
    assert tree(into) == expected
    assert (into / "ovms" / TOKENIZERS_LINK).read_bytes() == b"tokenizers"


@pytest.mark.parametrize("backslashes", [False, True])
def test_a_windows_release_is_unpacked_even_if_its_maker_wrote_backslashes(
    tmp_path: Path, *, backslashes: bool
) -> None:
    windows_archive(tmp_path / "a.zip", backslashes=backslashes)
    extract(tmp_path / "a.zip", tmp_path / "into", ignore)
    assert tree(tmp_path / "into").keys() >= {"ovms/ovms.exe", "ovms/python/python.exe"}


@pytest.mark.needs_posix
def test_a_link_in_a_zip_stays_a_link(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", ("lib/x.so.1", FILE, b"x"), ("lib/x.so", LINK, b"x.so.1"))
    extract(archive, tmp_path / "into", ignore)
    assert (tmp_path / "into/lib/x.so").readlink() == Path("x.so.1")


@pytest.mark.needs_posix
def test_a_setuid_bit_is_not_kept(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("f")
        info.mode = 0o6777
        tar.addfile(info)
    extract(tmp_path / "a.tar.gz", tmp_path / "into", ignore)
    assert (tmp_path / "into/f").stat().st_mode & 0o7777 == 0o755


def tree(folder: Path) -> dict[str, object]:
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in found
    }
