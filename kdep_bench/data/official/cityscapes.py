"""Cityscapes, fine annotations: leftImg8bit/<split>/<city>/, gtFine/<split>/<city>/.

The archives contain masks with labelIds; `convert` writes the masks with labelTrainIds that
training reads. Ids are from cityscapesScripts, `helpers/labels.py`: 19 evaluated classes, 255 for
all others. cityscapesScripts draws both kinds of masks from the same polygons in the same order, so
a mask that is converted id by id equals one that is drawn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kdep_bench.data.checks import check_segmentation
from kdep_bench.data.listing import list_images
from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive, Progress
from kdep_bench.data.official.base import OfficialSet, how_to_unpack_again, need_dir
from kdep_bench.errors import KdepError

_HOMEPAGE = "https://www.cityscapes-dataset.com/downloads/"
CLASSES = 19
#: labelIds of the evaluated classes, in the order of their train ids.
EVALUATED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TRAIN_ID_BY_LABEL_ID = np.full(256, 255, np.uint8)  # 255: not evaluated
TRAIN_ID_BY_LABEL_ID[list(EVALUATED_IDS)] = range(CLASSES)
IDS, TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
SPLITS = ("train", "val")


def convert(folder: Path, progress: Progress) -> None:
    """Writes a labelTrainIds mask next to each labelIds mask; existing ones are kept.

    Raises:
        KdepError: a labelIds mask that cannot be read.
    """
    files = [f for s in SPLITS for f in files_of(folder / "gtFine" / s, IDS)]
    for i, file in enumerate(files):
        target = file.with_name(file.name.removesuffix(IDS) + TRAIN_IDS)
        if not target.is_file() or target.stat().st_size == 0:
            try:
                with Image.open(file) as opened:
                    ids = np.asarray(opened)
            except (OSError, SyntaxError) as e:  # Pillow raises SyntaxError for a damaged PNG
                raise KdepError(
                    f"the mask {file} cannot be read ({e})",
                    expected="a PNG of gtFine_trainvaltest.zip",
                    fix=how_to_unpack_again("cityscapes"),
                ) from None
            partial = target.with_name(f".{target.name}.partial")
            Image.fromarray(TRAIN_ID_BY_LABEL_ID[ids]).save(partial, "PNG")
            partial.replace(target)
        progress(i + 1, len(files), "label ids to train ids")


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks that images and masks exist in pairs of equal size, and mask values are train ids.

    Returns counts; see `OfficialSet.verify`.
    """
    need_dir(folder / "gtFine", "the folder of gtFine_trainvaltest.zip")
    need_dir(folder / "leftImg8bit", "the folder of leftImg8bit_trainvaltest.zip")
    check_segmentation(
        folder, CLASSES, SPLITS, limit=n_decoded, fix=how_to_unpack_again("cityscapes")
    )
    return {
        f"{s}_images": len(files_of(folder / "leftImg8bit" / s, "_leftImg8bit.png")) for s in SPLITS
    }


def files_of(split: Path, suffix: str) -> list[Path]:
    """Sorted paths of the files in a split's city folders that end in `suffix`."""
    if not split.is_dir():
        return []
    return [split / n for n in list_images(split).images if n.endswith(suffix)]


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 4 training and 2 validation scenes with labelIds masks, and converts the masks."""
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            stem = f"{split}/tinytown/tinytown_{i:06d}_000019"
            draw.save(folder / "leftImg8bit" / f"{stem}_leftImg8bit.png", draw.noise_image(rng))
            ids = np.asarray(EVALUATED_IDS, np.uint8)[draw.mask(rng, CLASSES)]
            ids[:4] = 1  # ego vehicle: not evaluated
            draw.save(folder / "gtFine" / f"{stem}{IDS}", ids)
    convert(folder, lambda *_: None)


SET = OfficialSet(
    name="cityscapes",
    title="Cityscapes (fine)",
    homepage=_HOMEPAGE,
    # license.txt of the release: "for non-commercial purposes such as academic research".
    licence="Cityscapes licence: non-commercial",
    archives=(
        Archive("leftImg8bit_trainvaltest.zip", _HOMEPAGE),
        Archive("gtFine_trainvaltest.zip", _HOMEPAGE),
    ),
    counts={"train_images": 2975, "val_images": 500},
    verify=verify,
    tiny=tiny,
    convert=convert,
    notes=("archives not compared with official checksums, which only registered users can see",),
)
