"""PASCAL VOC 2007 and 2012 in VOCdevkit/, and masks from SBD (Semantic Boundaries Dataset).

Detection uses the images listed in ImageSets/Main, with Annotations/*.xml. Segmentation uses the
images listed in ImageSets/Segmentation, with the masks in SegmentationClass/. As in mmseg's
voc_aug.py, the 10,582 training masks ("trainaug") are VOC's list `train` and all masks of SBD whose
images are not in VOC's lists `train` and `val`. `convert` writes the SBD masks to
SegmentationClassAug/*.png and their list to ImageSets/Segmentation/aug.txt.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from kdep_bench.data.checks import check_image
from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive, Progress, unpack
from kdep_bench.data.official.base import (
    OfficialSet,
    decode_some,
    how_to_unpack_again,
    lines,
    need_dir,
    need_file,
    need_files,
)
from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import write_atomic

DEVKIT, SBD = "VOCdevkit", "sbd"
#: The 20 object classes, in the order of mask values 1..20.
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
#: (year, list) used for detection; the last one is the test set.
DETECTION = (("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test"))
_HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/"
_TORCHVISION = "torchvision 0.29.1, datasets/voc.py"
_SBD_HOMEPAGE = "http://home.bharathh.info/pubs/codes/SBD/download.html"
_BENCHMARK = "benchmark.tgz"
_UNPACK_AGAIN = how_to_unpack_again("voc")


def lay_out(folder: Path, archives: Mapping[str, Path], progress: Progress) -> None:
    """Unpacks SBD into sbd/, and the VOC archives, which contain VOCdevkit/, into the set's folder.

    Args:
        folder: the set's folder.
        archives: {archive name: path}.
        progress: called with (done, total, note).
    """
    for name, path in archives.items():
        if name == _BENCHMARK:
            unpack(path, folder / SBD, progress, strip=1)
        else:
            unpack(path, folder, progress)


def convert(folder: Path, progress: Progress) -> None:
    """Converts SBD's MATLAB masks to SegmentationClassAug/*.png and writes the list aug.txt."""
    source = folder / SBD / "dataset"
    if not source.is_dir():
        return
    year = folder / DEVKIT / "VOC2012"
    voc_names: set[str] = set()
    sbd_names: set[str] = set()
    for split in ("train", "val"):
        voc_names.update(_segmentation_ids(year, split))
        sbd_names.update(lines(source / f"{split}.txt", "SBD's list"))
    added_names = sorted(sbd_names - voc_names)
    for i, name in enumerate(added_names):
        target = year / "SegmentationClassAug" / f"{name}.png"
        if not target.is_file() or target.stat().st_size == 0:
            _write_mask(source / "cls" / f"{name}.mat", target)
        progress(i + 1, len(added_names), "SBD masks")
    write_atomic(year / "ImageSets/Segmentation/aug.txt", "".join(f"{n}\n" for n in added_names))


def _write_mask(mat: Path, target: Path) -> None:
    """Writes the mask in an SBD file (`GTcls.Segmentation`) as a PNG.

    mmseg's tools/dataset_converters/voc_aug.py converts in the same way.
    """
    from scipy.io import loadmat

    try:
        stored = loadmat(need_file(mat, "a mask of SBD"))["GTcls"][0, 0]["Segmentation"]
        labels = np.asarray(stored, np.uint8)
    except (KeyError, IndexError, ValueError, TypeError, NotImplementedError) as e:
        raise KdepError(
            f"the SBD file {mat} cannot be read ({e})",
            expected="a MATLAB file with GTcls",
            fix=f"move the folder {mat.parents[2]} elsewhere and run kdep-bench data voc again; it "
            "unpacks the folder again",
        ) from None
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    Image.fromarray(labels).save(partial, "PNG")
    partial.replace(target)


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks that listed images and their xml files or masks exist; reads `n_decoded` of each list.

    Returns counts; see `OfficialSet.verify`.
    """
    devkit = need_dir(folder / DEVKIT, "the folder of the VOC archives")
    counts = {}
    for year, split in DETECTION:
        names = ids(devkit / year / "ImageSets/Main" / f"{split}.txt")
        need_files(devkit / year / "JPEGImages", (f"{n}.jpg" for n in names), split)
        xmls = [f"{n}.xml" for n in names]
        need_files(devkit / year / "Annotations", xmls, f"{year} {split}")
        for xml in _evenly_spaced(xmls, n_decoded):
            check_xml(devkit / year / "Annotations" / xml)
        counts[f"{year[3:]}_{split}_images"] = len(names)
        decode_some((devkit / year / "JPEGImages" / f"{n}.jpg" for n in names), n_decoded)
    *training_lists, test_list = (
        devkit / year / "ImageSets/Main" / f"{split}.txt" for year, split in DETECTION
    )
    for training_list in training_lists:
        if shared := set(ids(training_list)) & set(ids(test_list)):
            raise KdepError(
                f"the lists {training_list} and {test_list} share {len(shared)} images, the "
                f"first is {min(shared)}",
                expected="disjoint lists, because one is for training and the other for testing",
                fix=_UNPACK_AGAIN,
            )
    year = devkit / "VOC2012"
    for split in ("train", "val", "aug"):
        masks = year / ("SegmentationClassAug" if split == "aug" else "SegmentationClass")
        names = _segmentation_ids(year, split)
        need_files(year / "JPEGImages", (f"{n}.jpg" for n in names), f"{split}.txt")
        need_files(masks, (f"{n}.png" for n in names), f"{split}.txt")
        for name in _evenly_spaced(names, n_decoded):
            check_mask(masks / f"{name}.png", year / "JPEGImages" / f"{name}.jpg")
        counts[f"segmentation_{split}_images"] = len(names)
    train, val, aug = (set(_segmentation_ids(year, split)) for split in ("train", "val", "aug"))
    if shared := (train | aug) & val:
        raise KdepError(
            f"{len(shared)} images of {year} are both in the training lists and in val, the first "
            f"is {sorted(shared)[0]}",
            fix=f"move ImageSets/Segmentation/aug.txt elsewhere, then {_UNPACK_AGAIN}",
        )
    return counts


def ids(path: Path) -> list[str]:
    """The image ids in a list file.

    Raises:
        KdepError: no ids, or the list of a single class, which has lines such as 'id 1'.
    """
    names = lines(path, "a VOC list, one image id per line")
    if any(" " in name for name in names):
        raise KdepError(
            f"the list {path} has lines that are not a single id ({names[0][:40]!r})",
            fix="use trainval.txt, not <class>_trainval.txt",
        )
    return names


def _segmentation_ids(year: Path, split: str) -> list[str]:
    return ids(year / "ImageSets/Segmentation" / f"{split}.txt")


def _evenly_spaced(names: list[str], limit: int | None) -> Iterable[str]:
    """`limit` of the names, evenly spaced; None: all."""
    if limit is None:
        return names
    step = max(1, len(names) // max(limit, 1))
    return names[::step][:limit]


def check_xml(path: Path) -> dict[str, int]:
    """Checks size, classes and boxes of one annotation file.

    Objects marked as difficult are ignored in training and in the score: mmdet sets their
    `ignore_flag`.

    Returns:
        {"objects": number of objects, "difficult": number of difficult ones among them}.

    Raises:
        KdepError: the first fault.
    """
    try:
        # If an element is missing, int("x") and float("x") raise ValueError.
        root = ET.parse(need_file(path, "a VOC annotation")).getroot()
        size = {k: int(root.findtext(f"size/{k}") or "x") for k in ("width", "height")}
    except (ET.ParseError, ValueError) as e:
        raise KdepError(
            f"the annotation {path} cannot be read ({e})",
            expected="VOC xml with size/width and size/height",
            fix=_UNPACK_AGAIN,
        ) from None
    objects = difficult = 0
    for item in root.iter("object"):
        name, flag = item.findtext("name"), item.findtext("difficult")
        if name not in CLASSES:
            raise KdepError(
                f"the annotation {path} has the class {name!r}",
                expected="one of the 20 VOC classes",
                fix="correct the name; mmdet would silently skip the object",
            )
        if flag not in (None, "0", "1"):
            raise KdepError(
                f"the annotation {path} has difficult={flag!r}",
                expected="0 or 1",
                fix="correct the annotation",
            )
        try:
            x0, y0, x1, y1 = (
                float(item.findtext(f"bndbox/{k}") or "x") for k in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            raise KdepError(
                f"the bndbox of an object {name} in {path} is incomplete",
                expected="xmin, ymin, xmax, ymax",
                fix="correct the annotation",
            ) from None
        # VOC counts pixels from 1. A few official boxes end one pixel outside the image.
        if not (0 <= x0 < x1 <= size["width"] + 1 and 0 <= y0 < y1 <= size["height"] + 1):
            raise KdepError(
                f"an object {name} in {path} has the box {[x0, y0, x1, y1]} in an image of "
                f"{size['width']}x{size['height']}",
                expected="1 <= xmin < xmax <= width, the same for y",
                fix="correct the annotation",
            )
        objects += 1
        difficult += flag == "1"
    return {"objects": objects, "difficult": difficult}


def training_objects(folder: Path) -> list[tuple[int, int]]:
    """(number of objects, shorter side in pixels) of each image in the detection training lists."""
    rows = []
    for year, split in DETECTION[:-1]:  # without the test set
        base = folder / DEVKIT / year
        for name in ids(base / "ImageSets/Main" / f"{split}.txt"):
            path = base / "Annotations" / f"{name}.xml"
            objects = check_xml(path)["objects"]
            root = ET.parse(path).getroot()
            sides = [int(root.findtext(f"size/{k}") or 0) for k in ("width", "height")]
            rows.append((objects, min(sides)))
    return rows


def check_mask(path: Path, image: Path) -> None:
    """Raises KdepError unless a mask has one channel, its image's size, and values 0..20 or 255."""
    info, image_info = check_image(path), check_image(image)
    if info.mode not in ("P", "L"):
        raise KdepError(
            f"the mask {path} has mode {info.mode}",
            expected="one 8-bit channel of class numbers",
            fix="use the original SegmentationClass files; a tool has changed the colour mode of "
            "this one",
        )
    if (info.width, info.height) != (image_info.width, image_info.height):
        raise KdepError(
            f"the mask {path} is {info.width}x{info.height}",
            expected=f"{image_info.width}x{image_info.height}, the size of {image.name}",
            fix=_UNPACK_AGAIN,
        )
    with Image.open(path) as opened:
        values = np.unique(np.asarray(opened))
    if wrong := [int(v) for v in values if v > len(CLASSES) and v != 255]:
        raise KdepError(
            f"the mask {path} contains the values {first_of(wrong, 8)}",
            expected=f"0..{len(CLASSES)} and 255",
            fix=_UNPACK_AGAIN,
        )


def write_xml(path: Path, file: str, size: tuple[int, int], objects: list[dict]) -> None:
    """Writes a VOC annotation file.

    Args:
        path: the file to write.
        file: name of the image.
        size: (width, height).
        objects: dicts with `name`, `difficult` (0 or 1) and `box`. A box is (x0, y0, x1, y1) in
            pixels counted from 0; x1 and y1 are exclusive.
    """
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = file
    node = ET.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ET.SubElement(node, key).text = str(value)
    for item in objects:
        node = ET.SubElement(root, "object")
        for key in ("name", "difficult"):
            ET.SubElement(node, key).text = str(item[key])
        x0, y0, x1, y1 = item["box"]
        edges = ET.SubElement(node, "bndbox")
        for key, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            ET.SubElement(edges, key).text = str(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(root).write(path)


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates both years with annotations, VOC masks, SBD's MATLAB masks and all lists.

    Some objects are marked as difficult.
    """
    devkit, size = folder / DEVKIT, draw.SIZE
    for year, split in DETECTION:
        names = [f"{'2012_' if year == 'VOC2012' else ''}{split}_{i:06d}" for i in range(4)]
        for k, name in enumerate(names):
            draw.save(devkit / year / "JPEGImages" / f"{name}.jpg", draw.noise_image(rng))
            objects = [
                {
                    "name": CLASSES[int(rng.integers(len(CLASSES)))],
                    "difficult": int((k + j) % 3 == 2),
                    "box": draw.box(rng),
                }
                for j in range(2)
            ]
            write_xml(devkit / year / "Annotations" / f"{name}.xml", f"{name}.jpg", size, objects)
        draw.write_lines(devkit / year / "ImageSets/Main" / f"{split}.txt", names)
    year, palette = devkit / "VOC2012", rng.integers(0, 256, (21, 3)).tolist()
    sbd = folder / SBD / "dataset"
    for split in ("train", "val", "aug"):
        names = [f"2012_{split}_{i:06d}" for i in range(4 if split != "val" else 2)]
        for name in names:
            draw.save(year / "JPEGImages" / f"{name}.jpg", draw.noise_image(rng))
            labels = draw.mask(rng, 21, ignore=255 if split != "aug" else None)
            if split == "aug":
                draw.save_mat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels}})
            else:
                draw.save_palette(year / "SegmentationClass" / f"{name}.png", labels, palette)
        if split == "aug":
            draw.write_lines(sbd / "train.txt", names[:2])
            draw.write_lines(sbd / "val.txt", names[2:])
        else:
            draw.write_lines(year / "ImageSets/Segmentation" / f"{split}.txt", names)
    convert(folder, lambda *_: None)


SET = OfficialSet(
    name="voc",
    title="PASCAL VOC 2007 and 2012, with SBD",
    homepage=_HOMEPAGE,
    licence="images: Flickr terms of use; annotations: research use (unchecked)",
    archives=(
        Archive(
            "VOCtrainval_06-Nov-2007.tar",
            _HOMEPAGE,
            "c52e279531787c972589f7e41ab4ae64",
            _TORCHVISION,
        ),
        Archive(
            "VOCtest_06-Nov-2007.tar", _HOMEPAGE, "b6e924de25625d8de591ea690078ad9f", _TORCHVISION
        ),
        Archive(
            "VOCtrainval_11-May-2012.tar",
            _HOMEPAGE,
            "6cd6e144f989b92b3379bac3b3de84fd",
            _TORCHVISION,
        ),
        Archive(
            _BENCHMARK,
            _SBD_HOMEPAGE,
            "82b4d87ceb2ed10f6038a1cba92111cb",
            "torchvision 0.29.1, datasets/sbd.py",
        ),
    ),
    # From the VOC development kits; 10,582 = 1,464 + 9,118 training masks.
    counts={
        "2007_trainval_images": 5011,
        "2007_test_images": 4952,
        "2012_trainval_images": 11540,
        "segmentation_train_images": 1464,
        "segmentation_val_images": 1449,
        "segmentation_aug_images": 9118,
    },
    verify=verify,
    tiny=tiny,
    convert=convert,
    lay_out=lay_out,
)
