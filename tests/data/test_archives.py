"""A damaged archive is refused and nothing of it is unpacked; an intact one is unpacked.

A seal is a JSON file that records that an archive was unpacked; SEALS is the folder of seals.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kdep_bench.data.official import archives
from kdep_bench.data.official.archives import SEALS, Archive, unpack
from kdep_bench.data.official.base import OfficialSet, lay_out, verify
from kdep_bench.errors import KdepError

FILES = {"d/a.txt": b"first" * 150, "d/b.txt": b"", "c.txt": b"last" * 300}
BLOCK = 512  # bytes of a tar block


def quiet(*_: object) -> None:
    """A progress callback that prints nothing."""


def tar_bytes(files: dict[str, bytes] = FILES, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """An uncompressed tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_bytes(files: dict[str, bytes] = FILES) -> bytes:
    """A zip of these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def content(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every unpacked file."""
    files = [p for p in folder.rglob("*") if p.is_file() and SEALS not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def is_refused(path: Path, target: Path) -> bool:
    """Whether the archive is refused; if not, asserts that all its files were unpacked."""
    try:
        unpack(path, target, quiet)
    except KdepError as e:
        if path.name not in str(e):
            raise
        assert not list(target.rglob("*.json"))
        return True
    assert content(target) == FILES
    return False


def test_a_tar_with_a_flipped_header_bit_is_refused_or_unchanged(tmp_path: Path):
    complete = tar_bytes()
    headers = [0, 3 * BLOCK, 4 * BLOCK]  # the first file has two blocks of data, the second none
    accepted = []
    for header in headers:
        for position in range(BLOCK):
            changed = bytearray(complete)
            changed[header + position] ^= 1 << position % 8  # flips one bit of the byte
            path = tmp_path / "a.tar"
            path.write_bytes(changed)
            if not is_refused(path, tmp_path / f"{header}-{position}"):
                accepted.append(position)
    # Bytes of the checksum field that tar ignores: a leading zero, and the two end bytes.
    assert set(accepted) <= {148, 154, 155}


def test_a_tar_that_lacks_any_block_up_to_its_two_end_blocks_is_refused(tmp_path: Path):
    complete = tar_bytes()
    # The first two files have 3 + 1 blocks with their headers; the last has a header and 3 blocks.
    end = 4 * BLOCK + 4 * BLOCK
    assert not complete[end:].strip(b"\0")
    for length in range(0, len(complete) + 1, BLOCK):
        for path, raw in (
            (tmp_path / "a.tar", complete[:length]),
            (tmp_path / "a.tgz", gzip.compress(complete[:length])),
        ):
            path.write_bytes(raw)
            is_truncated = length < end + 2 * BLOCK  # two end blocks follow
            assert is_refused(path, tmp_path / f"{path.suffix}{length}") == is_truncated


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_compressed_tar_truncated_anywhere_is_refused(tmp_path: Path, form: int):
    long_name = {"x" * 90 + "/" + "y" * 120 + ".txt": b"1"} if form != tarfile.USTAR_FORMAT else {}
    complete = gzip.compress(tar_bytes(FILES | long_name, form))
    path = tmp_path / "a.tgz"
    for length in range(1, len(complete), 7):  # every seventh length, to save time
        path.write_bytes(complete[:length])
        with pytest.raises(KdepError):
            unpack(path, tmp_path / "out", quiet)
    path.write_bytes(complete)
    unpack(path, tmp_path / "out", quiet)
    assert content(tmp_path / "out") == FILES | long_name


def with_wrong_crc(raw: bytes) -> bytes:
    """The gzip file with one bit of its CRC flipped."""
    return raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.tgz", with_wrong_crc(gzip.compress(tar_bytes()))),
        ("a.tgz", gzip.compress(tar_bytes())[:-1] + b"\xff"),  # a wrong length after the checksum
        ("a.tgz", gzip.compress(tar_bytes()) + b"garbage"),
        ("a.tgz", gzip.compress(tar_bytes()) + gzip.compress(b"more")),
        ("a.tar", tar_bytes() + b"garbage"),
        ("a.tar", tar_bytes() + tar_bytes()),  # tar reads only the first of two
        ("a.tar", tar_bytes() + bytes(2 << 20)),  # as left by an incomplete download
        ("a.tar", bytes(20 * BLOCK)),
        ("a.tar", b""),
        ("a.zip", zip_bytes() + b"garbage"),
        ("a.zip", zip_bytes({"other.txt": b"1"}) + zip_bytes()),
        ("a.zip", zip_bytes()[:-10]),
        ("a.zip", zip_bytes({})),
        ("a.tar", tar_bytes({"a": b"1", "a/b": b"2"})),  # `a` as a file and as a folder
        ("a.tar", tar_bytes({"a": b"1", "./a": b"2"})),  # two files with one path
        ("a.tar", tar_bytes({f"{SEALS}/b.tar.json": b"{}"})),  # a seal in the archive
        # A file and a folder with one long name, which tar stores in two different fields.
        ("a.tar", tar_bytes({"n" * 99 + "/" + "m" * 90: b"1", "n" * 99: b"2"})),
    ],
)
def test_damaged_archives_and_archives_with_inconsistent_or_additional_data_are_refused(
    tmp_path: Path, name: str, raw: bytes
):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(KdepError, match=name):
        unpack(tmp_path / name, tmp_path / "out", quiet)
    assert not content(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_zip_with_a_flipped_bit_is_refused_or_unchanged_and_a_truncated_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of calls would take a minute
    complete = zip_bytes()
    path = tmp_path / "a.zip"
    for position in range(len(complete)):
        changed = bytearray(complete)
        changed[position] ^= 1 << position % 8  # flips one bit of the byte
        path.write_bytes(changed)
        is_refused(path, tmp_path / f"flipped{position}")
        if position % 5 == 0:  # every fifth length, to save time
            path.write_bytes(complete[:position])
            assert is_refused(path, tmp_path / f"truncated{position}")


def header(kind: bytes, size: bytes) -> bytes:
    """A tar header with this kind and raw size field, and the right checksum."""
    raw = bytearray(tarfile.TarInfo("odd").tobuf(tarfile.USTAR_FORMAT))
    # Bytes of the header: size 124 to 135, checksum 148 to 155, kind 156.
    raw[124:136], raw[156:157] = size, kind
    raw[148:156] = b" " * 8
    raw[148:155] = b"%06o\0" % sum(raw)
    return bytes(raw)


# Headers that make tarfile loop: a negative size in tar's binary format, and a sparse file without
# an end.
NEGATIVE = b"\xff" * 10 + b"\xfc\xff"  # -769, as a two's complement of 12 bytes
ENDLESS = tarfile.TarInfo("sparse")
ENDLESS.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s"}


@pytest.mark.parametrize(
    "raw",  # kinds: 0 a file, x and L the name of the next member, S a sparse file
    [
        header(b"0", NEGATIVE) + tar_bytes(),
        tar_bytes({"a": b"1"})[: 2 * BLOCK] + header(b"0", NEGATIVE) + bytes(4 * BLOCK),
        tar_bytes({"a": b"1"})[: 2 * BLOCK] + header(b"x", NEGATIVE) + bytes(4 * BLOCK),
        header(b"x", b"77777777777\0") + tar_bytes(),
        header(b"L", b"00000000010\0") + header(b"L", b"00000000010\0"),
        header(b"S", b"00000000010\0") + bytes(BLOCK),
        header(b"0", b"\x80" + b"\x7f" * 11) + tar_bytes(),
        ENDLESS.tobuf(tarfile.PAX_FORMAT),
        ENDLESS.tobuf(tarfile.PAX_FORMAT) + b"9" * BLOCK,
    ],
)
def test_headers_on_which_tarfile_would_loop_forever_raise_kdep_error(tmp_path: Path, raw: bytes):
    path = tmp_path / "a.tar"
    path.write_bytes(raw)
    with pytest.raises(KdepError, match=r"a\.tar"):
        unpack(path, tmp_path / "out", quiet)


def test_an_intact_archive_is_unpacked_after_an_altered_archive_of_the_same_size(tmp_path: Path):
    intact = tar_bytes()
    altered = intact.replace(b"last", b"lost")  # a tar's checksums do not cover the files' data
    path, out = tmp_path / "a.tar", tmp_path / "out"
    path.write_bytes(altered)
    unpack(path, out, quiet)
    assert content(out) != FILES
    before = path.stat()
    path.write_bytes(intact)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert unpack(path, out, quiet)["skipped"] == 2  # only the altered file is written
    assert content(out) == FILES
    assert unpack(path, out, quiet)["skipped"] == 3
    assert "sha256" in (out / SEALS / "a.tar.json").read_text()


@pytest.mark.parametrize(
    "seal", ["", "[]", '{"archive": ["a.tar", 10240], "counts": {"files": 3, "bytes": 1}}', "{}"]
)
def test_a_seal_without_the_hash_of_the_archive_is_ignored(tmp_path: Path, seal: str):
    path, out = tmp_path / "a.tar", tmp_path / "out"
    path.write_bytes(tar_bytes())
    (out / SEALS).mkdir(parents=True)
    (out / SEALS / "a.tar.json").write_text(seal)
    assert unpack(path, out, quiet)["skipped"] == 0
    assert content(out) == FILES


def test_interrupted_unpacking_resumes_and_replaces_files_of_a_different_archive(tmp_path: Path):
    path, out = tmp_path / "a.tar", tmp_path / "out"
    path.write_bytes(tar_bytes())

    def stop(done: int, total: int, note: str = "") -> None:
        if note.startswith("unpacking") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(path, out, stop)
    (out / "d/a.txt").write_bytes(b"x" * len(FILES["d/a.txt"]))
    path.write_bytes(tar_bytes().replace(b"last", b"lost"))
    unpack(path, out, quiet)
    assert content(out) == FILES | {"c.txt": b"lost" * 300}


def test_a_failed_check_of_the_data_set_removes_its_seals(tmp_path: Path):
    """The check fails once with a fault, and once with three images instead of four."""

    def make_check(fault: str) -> Callable[[Path, int | None], dict[str, int]]:
        def run(folder: Path, decode: int | None) -> dict[str, int]:
            if fault:
                raise KdepError(fault)
            return {"images": 3}

        return run

    path, folder = tmp_path / "a.tar", tmp_path / "root" / "one"
    path.write_bytes(tar_bytes())
    for fault, count in (("a broken image", 3), ("", 4)):
        for target in (folder, folder / "train"):
            unpack(path, target, quiet)
        dataset = OfficialSet(
            name="one",
            title="",
            homepage="",
            licence="",
            archives=(),
            counts={"images": count},
            verify=make_check(fault),
            tiny=lambda *_: None,
        )
        with pytest.raises(KdepError):
            verify(dataset, tmp_path / "root")
        assert not (folder / SEALS).exists()
        assert not (folder / "train" / SEALS).exists()


def test_after_a_failed_conversion_a_damaged_file_is_unpacked_again(tmp_path: Path):
    def convert(folder: Path, _progress: Callable[..., None]) -> None:
        if content(folder) != FILES:
            raise KdepError("a mask cannot be read")

    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes())
    archive = Archive("a.tar", "")
    dataset = OfficialSet(
        name="one",
        title="",
        homepage="",
        licence="",
        archives=(archive,),
        counts={},
        verify=lambda *_: {},
        tiny=lambda *_: None,
        convert=convert,
    )
    arguments = (dataset, tmp_path / "root", [tmp_path], quiet)
    lay_out(*arguments)
    damaged = tmp_path / "root/one/d/a.txt"
    damaged.write_bytes(b"x" * len(FILES["d/a.txt"]))
    with pytest.raises(KdepError, match="a mask cannot be read"):
        lay_out(*arguments)
    lay_out(*arguments)
    assert damaged.read_bytes() == FILES["d/a.txt"]


def test_an_encrypted_zip_and_a_folder_with_a_file_s_name_raise_kdep_error(tmp_path: Path):
    raw = bytearray(zip_bytes())
    position = raw.rindex(b"PK\1\2")  # the last entry of the central directory
    raw[position + 8] |= 1  # the flag for encryption
    path = tmp_path / "a.zip"
    path.write_bytes(raw)
    with pytest.raises(KdepError, match="is encrypted"):
        unpack(path, tmp_path / "out", quiet)
    path.write_bytes(zip_bytes())
    target = tmp_path / "target"
    (target / "c.txt").mkdir(parents=True)  # a folder with the name of a file in the archive
    with pytest.raises(KdepError, match="that no other file is in its place"):
        unpack(path, target, quiet)
    (target / "c.txt").rmdir()
    assert unpack(path, target, quiet)["files"] == 3
    with pytest.raises(KdepError, match="failed"):
        archives.check_archive(tmp_path / "none.tar", archives.Archive("none.tar", ""), quiet)


def test_an_exceeded_quota_is_reported_as_a_full_disk(tmp_path: Path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        message = str(archives.disk_error(tmp_path / "a.tar", OSError(number, os.strerror(number))))
        assert "free disk space" in message
        assert "permissions" not in message
