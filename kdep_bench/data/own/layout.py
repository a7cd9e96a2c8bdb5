"""Writes the images and masks of a data set into the tasks' layout, and hashes their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from kdep_bench.data.images import ImageInfo, place_all, placed_name
from kdep_bench.data.listing import shown


class Layout:
    """Collects images and masks, and writes them below a folder as links or converted copies.

    Args:
        data: the folder; created if missing.
        info: ImageInfo of every image that will be added, by the user's file.
    """

    def __init__(self, data: Path, info: Mapping[Path, ImageInfo]) -> None:
        self.data, self.info = data, info
        self._links: list[tuple[Path, Path]] = []
        self._masks: list[tuple[Path, Path]] = []
        self._rows: list[str] = []  # "SHA-256 path" of each file, for the fingerprint
        data.mkdir(parents=True, exist_ok=True)

    def add_images(self, places: Mapping[Path, Path]) -> None:
        """Adds images: {user's file: path in the layout}."""
        for file, place in places.items():
            self._links.append((file, place))
            self._add_row(place, self.info[file].sha256)

    def add_folder(
        self, root: Path, names: Iterable[str], target: Path, *, may_link_folder: bool
    ) -> None:
        """Adds the images of one folder.

        Args:
            root: the user's folder.
            names: paths of its images, relative to `root`.
            target: the folder in the layout.
            may_link_folder: whether `root` has no images other than `names`. The folder itself is
                then linked, unless an image must be renamed or converted.
        """
        placed = {n: placed_name(n, self.info[root / n]) for n in names}
        is_unchanged = all(n == p and self.info[root / n].plain for n, p in placed.items())
        if may_link_folder and is_unchanged:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(root, target_is_directory=True)
            for name in placed:
                self._add_row(target / name, self.info[root / name].sha256)
        else:
            self.add_images({root / n: target / p for n, p in placed.items()})

    def add_masks(self, places: Mapping[Path, Path], hashes: Mapping[Path, str]) -> None:
        """Adds masks, which are linked: {user's file: path in the layout}, {file: SHA-256}."""
        for file, place in places.items():
            self._masks.append((file, place))
            self._add_row(place, hashes[file])

    def place(self) -> None:
        """Writes the links and converted copies of all files that are in no linked folder."""
        while self._links:  # a file may have several paths; each pass writes one of them
            one_per_file: dict[Path, Path] = {}
            rest = [
                (file, place)
                for file, place in self._links
                if one_per_file.setdefault(file, place) != place
            ]
            place_all(self.info, one_per_file)
            self._links = rest
        for file, place in self._masks:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)

    def fingerprint(self) -> str:
        """SHA-256 over names and contents of all images, masks and json files of the layout."""
        for path in sorted(self.data.glob("*/*.json")) + sorted(self.data.glob("*/*/*.json")):
            if not any(p.is_symlink() for p in (path, path.parent)):
                self._add_row(path, hashlib.sha256(path.read_bytes()).hexdigest())
        return hashlib.sha256("\n".join(sorted(self._rows)).encode()).hexdigest()

    def _add_row(self, place: Path, sha256: str) -> None:
        self._rows.append(f"{sha256} {shown(place.relative_to(self.data))}")
