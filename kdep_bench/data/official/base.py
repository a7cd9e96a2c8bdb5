"""OfficialSet, the description of an official data set; functions that unpack and check sets."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdep_bench.data.checks import check_image
from kdep_bench.data.official.archives import (
    Archive,
    Progress,
    check_archive,
    drop_seals,
    find_archive,
    unpack,
)
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import plain_text

ROOT = "KDEP_DATA"  # environment variable: the folder with all sets
# Modules of this package that do not define a set.
_NOT_SETS = {"__init__", "archives", "base", "tiny", "stage"}


@dataclass(frozen=True)
class OfficialSet:
    """One data set in its official format.

    Attributes:
        name: name on the command line, and of the set's folder below the root.
        title, homepage, licence: shown to users. A licence ends in "(unchecked)" if neither the
            licence text nor a quotation of it was read.
        archives: the files to download; unpacked into the set's folder unless `lay_out` is given.
        counts: numbers of images and classes of the complete release; the result of `verify` must
            have the same values under these keys.
        verify: function (folder, n_decoded) that checks the files and returns counts; it raises
            KdepError for the first fault. `n_decoded` is the number of images to decode, of each
            split or (Caltech-256, CUB-200, DTD) of all splits together; None for all.
        tiny: function (folder, rng) that writes a tiny copy in the same format.
        convert: function (folder, progress) that creates files that are not in the archives, such
            as converted masks. It also runs if its output already exists.
        lay_out: function (folder, {archive name: path}, progress) that replaces the unpacking.
        notes: sentences about the data, shown with the results.
        training_counts: the keys of `counts` whose sum is the number of images in one epoch.
    """

    name: str
    title: str
    homepage: str
    licence: str
    archives: tuple[Archive, ...]
    counts: Mapping[str, int]
    verify: Callable[[Path, int | None], dict[str, int]]
    tiny: Callable[[Path, np.random.Generator], None]
    convert: Callable[[Path, Progress], None] | None = None
    lay_out: Callable[[Path, Mapping[str, Path], Progress], None] | None = None
    notes: tuple[str, ...] = field(default=())
    training_counts: tuple[str, ...] = field(default=())


def set_names() -> list[str]:
    """The names of all sets, from the names of their modules, which are not imported."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_SETS)


def get_set(name: str) -> OfficialSet:
    """The set with that name; raises KdepError, with similar names, if there is none."""
    if name not in set_names():
        raise unknown_name("data set", name, set_names())
    return importlib.import_module(f"kdep_bench.data.official.{name}").SET


def data_root(
    root: str | Path | None = None, given_as: str = "`root` of the data config", name: str = "SET"
) -> Path:
    """The folder with all sets.

    Args:
        root: the folder; None: $KDEP_DATA.
        given_as: what sets `root`, for errors: an option, or a key of a config.
        name: name of the set that is needed, for errors.

    Raises:
        KdepError: the folder is not set, or does not exist.
    """
    chosen = root or os.environ.get(ROOT)
    if not chosen:
        raise KdepError(
            f"the folder of the data sets is not set (no ${ROOT})",
            fix=f"set {given_as}, or run: export {ROOT}=/path/to/data (a folder with one "
            "sub-folder per data set)",
        )
    setting = given_as if root else f"${ROOT}"
    if not Path(chosen).is_dir():
        raise KdepError(
            f"the folder {chosen} ({setting}) does not exist",
            expected="the folder that contains one sub-folder per data set, such as imagenet/",
            fix=f"correct {setting}, or write the folder from downloaded archives: kdep-bench data "
            f"{name} --root {shlex.quote(str(chosen))} --archives DOWNLOADS",
        )
    return Path(chosen)


def lay_out(
    dataset: OfficialSet,
    root: Path,
    archives: list[Path],
    progress: Progress,
    checksums: bool = True,
) -> dict[str, str]:
    """Checks a set's archives, unpacks them into its folder below `root`, and converts files.

    An interrupted run can be repeated; it resumes. If the conversion fails, the seals of the
    archives (`archives.Seal`: an archive was unpacked) are removed, as in `verify`.

    Args:
        dataset: the set.
        root: the folder with all sets.
        archives: folders to search for the archives, before the set's folder and `root`.
        progress: called with (done, total, note).
        checksums: whether to compute the MD5 of each archive, even if no official MD5 is known.

    Returns:
        MD5 by archive name; empty without `checksums`.

    Raises:
        KdepError: an archive that is missing, damaged, of another size or checksum, or unsafe.
    """
    folder = root / dataset.name
    paths: dict[str, Path] = {}
    missing: list[Archive] = []
    for archive in dataset.archives:
        path = find_archive(archive, [*archives, folder, root])
        if path is not None:
            paths[archive.name] = path
        elif not archive.optional:
            missing.append(archive)
    if missing:
        is_one = len(missing) == 1
        raise KdepError(
            f"the archive{'' if is_one else 's'} {', '.join(a.name for a in missing)} "
            f"({dataset.title}) {'was' if is_one else 'were'} not found in "
            f"{', '.join(str(a) for a in [*archives, folder, root])}",
            fix=f"download {'it' if is_one else 'them'} from "
            f"{', '.join(dict.fromkeys(a.homepage for a in missing))} and pass the folder as "
            "--archives",
        )
    digests = {}
    for archive in dataset.archives:
        if checksums and archive.name in paths:
            digests[archive.name] = check_archive(paths[archive.name], archive, progress)
    folder.mkdir(parents=True, exist_ok=True)
    if dataset.lay_out is not None:
        try:
            dataset.lay_out(folder, paths, progress)
        except KdepError as e:
            raise _with_command(e, dataset, root) from None
    else:
        for path in paths.values():
            unpack(path, folder, progress)
    if dataset.convert is not None:
        try:
            dataset.convert(folder, progress)
        except KdepError as e:  # the cause may be a file that was damaged later
            drop_seals(folder)
            raise _with_command(e, dataset, root) from None
        except Exception:
            drop_seals(folder)
            raise
    return digests


def verify(
    dataset: OfficialSet, root: Path, n_decoded: int | None = 8, check_counts: bool = True
) -> dict:
    """Checks a set below `root`; returns its counts of images and classes.

    If the check fails, the seals of its archives (`archives.Seal`: it was unpacked) are removed.
    The next `lay_out` then compares every file with the archives.

    Args:
        dataset: the set.
        root: the folder with all sets.
        n_decoded: see `OfficialSet.verify`.
        check_counts: whether to compare the counts with those of the official release.

    Raises:
        KdepError: no folder, the first fault of the set, or a count that differs from the release.
    """
    try:
        return _verify(dataset, root, n_decoded, check_counts)
    except KdepError as e:
        drop_seals(root / dataset.name)
        raise _with_command(e, dataset, root) from None


def _verify(dataset: OfficialSet, root: Path, n_decoded: int | None, check_counts: bool) -> dict:
    folder = root / dataset.name
    if not folder.is_dir():
        raise KdepError(
            f"the data set {dataset.title} was not found at {folder}",
            fix=how_to_unpack_again(dataset.name).replace(" again", ""),
        )
    counts = dataset.verify(folder, n_decoded)
    official_counts = dataset.counts if check_counts else {}
    for key, official in official_counts.items():
        if counts.get(key) != official:
            raise KdepError(
                f"{dataset.title} at {folder} has {counts.get(key)} {key}",
                expected=f"{official}, as in the official release",
                fix=how_to_unpack_again(dataset.name)
                + " (the archive was not completely unpacked, or is another release)",
            )
    return counts


def _with_command(e: KdepError, dataset: OfficialSet, root: Path) -> KdepError:
    """`e` with the set and the root in place of SET and DIR in the command of its fix."""
    command = f"kdep-bench data {dataset.name} --root {shlex.quote(str(root))}"
    fix = re.sub(r"kdep-bench data \w+ --root DIR", lambda _: command, e.fix)
    return KdepError(e.problem, expected=e.expected, fix=fix)


# ---- used by the checks of several sets ----


def how_to_unpack_again(name: str) -> str:
    """The fix for damaged files of the set `name`: a command that unpacks its archives again.

    `verify` and `lay_out` replace SET and DIR by the set and its root.
    """
    return f"unpack its archives again: kdep-bench data {name} --root DIR --archives DOWNLOADS"


def need_dir(path: Path, description: str) -> Path:
    """Returns `path` if it is a folder; raises KdepError otherwise.

    Args:
        path: the folder.
        description: what the folder should contain, for the error.
    """
    if not path.is_dir():
        raise KdepError(
            f"the folder {path} does not exist",
            expected=description,
            fix=how_to_unpack_again("SET"),
        )
    return path


def need_file(path: Path, description: str) -> Path:
    """Returns `path` if it is a file that is not empty; raises KdepError otherwise.

    Args:
        path: the file.
        description: what the file should be, for the error.
    """
    if not path.is_file():
        raise KdepError(
            f"the file {path} does not exist",
            expected=description,
            fix=how_to_unpack_again("SET"),
        )
    if path.stat().st_size == 0:
        raise KdepError(
            f"the file {path} is empty (0 bytes)",
            expected=description,
            fix=how_to_unpack_again("SET"),
        )
    return path


def lines(path: Path, description: str) -> list[str]:
    """The non-empty lines of a text file, stripped; raises KdepError if there are none."""
    try:
        text = need_file(path, description).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise KdepError(
            f"the file {path} cannot be read ({plain_text(e)})",
            expected=description,
            fix=how_to_unpack_again("SET"),
        ) from None
    rows = [line.strip() for line in text.splitlines() if line.strip()]
    if not rows:
        raise KdepError(
            f"the file {path} has no entries",
            expected=description,
            fix=how_to_unpack_again("SET"),
        )
    return rows


def need_files(folder: Path, names: Iterable[str], source: Path | str) -> int:
    """Checks that each of `names` is a file below `folder`; returns their number.

    Args:
        folder: the folder.
        names: paths relative to it.
        source: the list that contains the names, for errors.

    Raises:
        KdepError: the first file that is missing, empty or listed twice.
    """
    seen: set[str] = set()
    for name in names:
        path = folder / name
        if name in seen:
            raise KdepError(
                f"the file {path} occurs twice in {source}",
                expected="each file once (repeated files would count twice in the scores)",
                fix=how_to_unpack_again("SET"),
            )
        seen.add(name)
        try:
            size = path.stat().st_size
        except (OSError, ValueError):  # ValueError: a null byte in the name
            raise KdepError(
                f"the file {path}, which is listed in {source}, does not exist",
                fix=how_to_unpack_again("SET"),
            ) from None
        if size == 0:
            raise KdepError(
                f"the file {path} is empty (0 bytes)",
                fix=how_to_unpack_again("SET"),
            )
    return len(seen)


def decode_some(files: Iterable[Path], limit: int | None) -> int:
    """Decodes `limit` evenly spaced images (None: all) and returns their number.

    Raises:
        KdepError: an image that cannot be decoded.
    """
    files = list(files)
    if limit is not None and len(files) > limit:
        step = len(files) / max(limit, 1)
        files = [files[int(i * step)] for i in range(limit)]
    for file in files:
        check_image(file)
    return len(files)
