"""Official data sets and their archives, tested with tiny generated copies in the real formats."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdep_bench.cli import prepare_data
from kdep_bench.data.official import caltech256, cifar100, cityscapes, coco, imagenet, stage, voc
from kdep_bench.data.official.archives import Archive, check_archive, unpack
from kdep_bench.data.official.base import (
    OfficialSet,
    data_root,
    get_set,
    lay_out,
    set_names,
    verify,
)
from kdep_bench.data.official.stage import prepare
from kdep_bench.errors import KdepError


def quiet(*_: object) -> None:
    """A progress callback that prints nothing."""
    return None


def make(name: str, root: Path) -> OfficialSet:
    """Writes a tiny copy of a set; returns the set."""
    dataset = get_set(name)
    (root / name).mkdir(parents=True)
    dataset.tiny(root / name, np.random.default_rng(0))
    return dataset


@pytest.fixture(params=set_names())
def tiny_set(request: pytest.FixtureRequest, tmp_path: Path) -> OfficialSet:
    """Each official set in turn, with a tiny copy in tmp_path."""
    return make(request.param, tmp_path)


def test_every_official_set_has_a_module_that_is_found_by_name() -> None:
    assert set_names() == [
        "ade20k", "caltech256", "cifar100", "cityscapes", "coco", "cub200", "dtd",
        "foggy_cityscapes", "imagenet", "voc",
    ]  # fmt: skip
    for name in set_names():
        assert get_set(name).name == name
    with pytest.raises(KdepError, match="did you mean coco"):
        get_set("cocoo")


def test_the_counts_of_complete_releases_are_the_published_numbers() -> None:
    """The counts of the releases, from the pages and papers that each set's module names."""
    assert {name: dict(get_set(name).counts) for name in set_names()} == {
        "ade20k": {"training_images": 20_210, "validation_images": 2_000},
        "caltech256": {
            "classes": 257,
            "images": 30_607,
            "train_images": 257 * 60,
            "test_images": 30_607 - 257 * 60,
        },
        "cifar100": {"train_images": 50_000, "test_images": 10_000, "classes": 100},
        "cityscapes": {"train_images": 2_975, "val_images": 500},
        "coco": {"train2017_images": 118_287, "val2017_images": 5_000, "categories": 80},
        "cub200": {
            "images": 11_788,
            "train_images": 5_994,
            "test_images": 5_794,
            "classes": 200,
        },
        "dtd": {
            "images": 47 * 120,
            "train_images": 47 * 40,
            "val_images": 47 * 40,
            "test_images": 47 * 40,
            "classes": 47,
        },
        "foggy_cityscapes": {
            "train_clear_images": 2_975,
            "val_clear_images": 500,
            "train_foggy_images": 2_975,
            "val_foggy_images": 500,
        },
        "imagenet": {"train_classes": 1000, "train_images": 1_281_167},
        "voc": {
            "2007_trainval_images": 5_011,
            "2007_test_images": 4_952,
            "2012_trainval_images": 11_540,
            "segmentation_train_images": 1_464,
            "segmentation_val_images": 1_449,
            "segmentation_aug_images": 10_582 - 1_464,  # the augmented list without VOC's own
        },
    }


def test_a_tiny_copy_passes_its_own_checks(tiny_set: OfficialSet, tmp_path: Path) -> None:
    counts = verify(tiny_set, tmp_path, None, check_counts=False)
    assert set(tiny_set.counts) <= set(counts)
    assert all(n > 0 for n in counts.values())


def test_a_tiny_copy_is_refused_as_the_official_release(
    tiny_set: OfficialSet, tmp_path: Path
) -> None:
    with pytest.raises(KdepError, match="as in the official release"):
        verify(tiny_set, tmp_path)


def test_an_image_file_of_zero_bytes_is_refused(tiny_set: OfficialSet, tmp_path: Path) -> None:
    files = sorted(
        p
        for p in (tmp_path / tiny_set.name).rglob("*")
        if p.suffix.lower() in (".jpg", ".jpeg", ".png") and "labelIds" not in p.name
    )
    if not files:  # CIFAR has no image files
        files = [tmp_path / "cifar100" / cifar100.FOLDER / "train"]
    files[0].write_bytes(b"")
    with pytest.raises(KdepError, match=r"0 bytes") as error:
        verify(tiny_set, tmp_path, None, check_counts=False)
    assert files[0].name in str(error.value)


def test_the_error_for_a_missing_set_names_the_command_that_prepares_it(tmp_path: Path) -> None:
    with pytest.raises(KdepError, match="kdep-bench data coco --root"):
        verify(get_set("coco"), tmp_path)


def test_the_data_root_is_read_from_kdep_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KDEP_DATA", raising=False)
    with pytest.raises(KdepError, match="KDEP_DATA"):
        data_root()
    monkeypatch.setenv("KDEP_DATA", str(tmp_path))
    assert data_root() == tmp_path


def test_a_folder_in_the_place_of_the_set_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_data.main([str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert "is a folder, not an official data set" in text
    assert "and give the folder of all sets as --root" in text


def test_a_missing_data_root_is_an_error_and_is_not_made_if_an_archive_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    assert prepare_data.main(["imagenet", "--root", str(gone)]) == 2
    assert (
        f"the folder {gone} (--root) does not exist; expected the folder that contains one "
        "sub-folder per data set, such as imagenet/. Fix: correct --root, or write the folder from "
        f"downloaded archives: kdep-bench data imagenet --root {gone} --archives DOWNLOADS."
    ) in capsys.readouterr().err
    args = ["imagenet", "--root", str(gone), "--archives", str(tmp_path)]
    assert prepare_data.main(args) == 2
    assert "was not found in" in capsys.readouterr().err
    assert not gone.exists()
    monkeypatch.setenv("KDEP_DATA", str(gone))
    with pytest.raises(KdepError, match=r"\(\$KDEP_DATA\) does not exist"):
        data_root()


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["pocket", "--root", "X"], "configs/data/pocket.py --out DIR."),
        (["mine"], "run a suite with this data: its stage prepare reads your folders."),
        (["verify", "coco", "X"], "kdep-bench data coco --check --root DIR."),
        (["check"], "kdep-bench data SET --check --root DIR."),
        (["cocos"], "did you mean coco?"),
    ],
)
def test_what_is_not_a_data_set_is_refused_with_the_command_to_use(
    arguments: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_data.main(arguments) == 2
    assert capsys.readouterr().err.endswith(f"{fix}\n")


# ---- copies with a fault ----


def test_cityscapes_masks_with_label_ids_are_refused(tmp_path: Path) -> None:
    dataset = make("cityscapes", tmp_path)
    mask = next((tmp_path / "cityscapes/gtFine/train").rglob(f"*{cityscapes.TRAIN_IDS}"))
    ids = mask.with_name(mask.name.replace("labelTrainIds", "labelIds"))
    mask.write_bytes(ids.read_bytes())
    with pytest.raises(KdepError, match="look like labelIds"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_cityscapes_train_ids_agree_with_the_label_ids(tmp_path: Path) -> None:
    make("cityscapes", tmp_path)
    for ids in (tmp_path / "cityscapes/gtFine").rglob(f"*{cityscapes.IDS}"):
        train = ids.with_name(ids.name.replace("labelIds", "labelTrainIds"))
        label_ids, train_ids = np.asarray(Image.open(ids)), np.asarray(Image.open(train))
        assert (train_ids[label_ids == 1] == 255).all()  # label id 1 is not evaluated
        for number, label in enumerate(cityscapes.EVALUATED_IDS):
            assert (train_ids[label_ids == label] == number).all()


def test_a_damaged_cityscapes_mask_cannot_be_converted(tmp_path: Path) -> None:
    make("cityscapes", tmp_path)
    mask = next((tmp_path / "cityscapes/gtFine/train").rglob(f"*{cityscapes.IDS}"))
    mask.write_bytes(mask.read_bytes()[:60])
    mask.with_name(mask.name.removesuffix(cityscapes.IDS) + cityscapes.TRAIN_IDS).unlink()
    with pytest.raises(KdepError, match="unpack its archives again"):
        cityscapes.convert(tmp_path / "cityscapes", lambda *_: None)


def test_a_cityscapes_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    dataset = make("cityscapes", tmp_path)
    mask = next((tmp_path / "cityscapes/gtFine/val").rglob(f"*{cityscapes.TRAIN_IDS}"))
    Image.open(mask).resize((32, 24)).save(mask)
    with pytest.raises(KdepError, match="32x24"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_a_missing_split_list_of_voc_is_refused(tmp_path: Path) -> None:
    dataset = make("voc", tmp_path)
    (tmp_path / "voc/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(KdepError, match=r"Segmentation/val.txt does not exist"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_a_class_specific_image_list_of_voc_is_refused(tmp_path: Path) -> None:
    dataset = make("voc", tmp_path)
    path = tmp_path / "voc/VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    path.write_text("".join(f"{image}  1\n" for image in path.read_text().split()))
    with pytest.raises(KdepError, match=r"not <class>_trainval\.txt"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_valid_difficult_flags_of_voc_are_read_and_invalid_ones_are_refused(tmp_path: Path) -> None:
    make("voc", tmp_path)
    xmls = sorted((tmp_path / "voc/VOCdevkit/VOC2007/Annotations").glob("*.xml"))
    info = [voc.check_xml(x) for x in xmls]
    assert sum(f["difficult"] for f in info) > 0
    assert sum(f["objects"] for f in info) == 2 * len(xmls)
    with_wrong_flag = xmls[0].read_text().replace("<difficult>0", "<difficult>maybe", 1)
    xmls[0].write_text(with_wrong_flag)
    with pytest.raises(KdepError, match="difficult='maybe'"):
        voc.check_xml(xmls[0])


def test_an_unknown_class_of_voc_is_refused(tmp_path: Path) -> None:
    make("voc", tmp_path)
    xml = next((tmp_path / "voc/VOCdevkit/VOC2007/Annotations").glob("*.xml"))
    text = xml.read_text()
    start = text.index("<name>") + len("<name>")
    xml.write_text(text[:start] + "unicorn" + text[text.index("</name>") :])
    with pytest.raises(KdepError, match="'unicorn'"):
        voc.check_xml(xml)


def test_images_in_voc_s_own_lists_are_not_in_the_list_of_sbd_masks(tmp_path: Path) -> None:
    dataset = make("voc", tmp_path)
    folder = tmp_path / "voc"
    lists = folder / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    official_name = (lists / "val.txt").read_text().split()[0]
    with (folder / "sbd/dataset/val.txt").open("a") as file:
        file.write(f"{official_name}\n")
    voc.convert(folder, quiet)
    assert official_name not in (lists / "aug.txt").read_text().split()
    verify(dataset, tmp_path, None, check_counts=False)
    (lists / "aug.txt").open("a").write(f"{official_name}\n")
    with pytest.raises(KdepError, match=r"SegmentationClassAug|are both in the training lists"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_coco_crowds_are_counted_and_categories_compared(tmp_path: Path) -> None:
    dataset = make("coco", tmp_path)
    path = tmp_path / "coco/annotations/instances_train2017.json"
    table = json.loads(path.read_text())
    assert coco.check_table(path, table)["crowds"] == 4
    table["categories"][0]["name"] = "persons"
    path.write_text(json.dumps(table))
    with pytest.raises(KdepError, match=r"not those of COCO.*person"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_the_mask_of_a_tiny_crowd_covers_its_box(tmp_path: Path) -> None:
    """pycocotools decodes the run lengths (column by column) to the stated box and area."""
    from pycocotools import mask

    make("coco", tmp_path)
    table = json.loads((tmp_path / "coco/annotations/instances_train2017.json").read_text())
    crowds = [a for a in table["annotations"] if a["iscrowd"]]
    assert len(crowds) == 4
    for crowd in crowds:
        height, width = crowd["segmentation"]["size"]
        coded = mask.frPyObjects(crowd["segmentation"], height, width)
        assert mask.toBbox(coded).tolist() == crowd["bbox"]
        assert mask.area(coded) == crowd["area"]


def test_a_partly_unpacked_folder_of_coco_images_is_refused(tmp_path: Path) -> None:
    dataset = make("coco", tmp_path)
    sorted((tmp_path / "coco/train2017").iterdir())[-1].unlink()
    with pytest.raises(KdepError, match="unpack its archives again: kdep-bench data coco --root /"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_a_coloured_mask_of_ade20k_is_refused(tmp_path: Path) -> None:
    dataset = make("ade20k", tmp_path)
    mask = next((tmp_path / "ade20k").rglob("annotations/training/*.png"))
    Image.open(mask).convert("RGB").save(mask)
    with pytest.raises(KdepError, match="mode RGB"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_a_cifar_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    make("cifar100", tmp_path)
    created = tmp_path / "created"

    class CreatesFile:
        """An object whose unpickling would create a file."""

        def __reduce__(self) -> tuple:
            return Path.touch, (created,)

    path = tmp_path / "cifar100" / cifar100.FOLDER / "train"
    path.write_bytes(pickle.dumps(CreatesFile(), protocol=2))
    with pytest.raises(KdepError, match="cannot be read"):
        cifar100.read_split(tmp_path / "cifar100", "train")
    assert not created.exists()


def test_cifar10_in_place_of_cifar100_is_refused(tmp_path: Path) -> None:
    make("cifar100", tmp_path)
    base = tmp_path / "cifar100" / cifar100.FOLDER
    (base / "meta").write_bytes(pickle.dumps({"label_names": ["a"]}, protocol=2))
    with pytest.raises(KdepError, match="not CIFAR-10"):
        cifar100.read_split(tmp_path / "cifar100", "train")


def test_inconsistent_lists_of_cub_are_refused(tmp_path: Path) -> None:
    dataset = make("cub200", tmp_path)
    path = tmp_path / "cub200/CUB_200_2011/train_test_split.txt"
    path.write_text("".join(f"{row}\n" for row in path.read_text().splitlines()[:-1]))
    with pytest.raises(KdepError, match="differ in 1 image ids"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_inconsistent_lists_of_dtd_are_refused(tmp_path: Path) -> None:
    dataset = make("dtd", tmp_path)
    labels = tmp_path / "dtd/dtd/labels"
    train, val = (labels / "train1.txt").read_text(), (labels / "val1.txt").read_text()
    (labels / "train1.txt").write_text(val)
    (labels / "val1.txt").write_text(train)
    with pytest.raises(KdepError, match=r"differs from labels/train1.txt"):
        verify(dataset, tmp_path, None, check_counts=False)


def test_a_gap_in_the_class_numbers_of_caltech_is_refused(tmp_path: Path) -> None:
    make("caltech256", tmp_path)
    base = tmp_path / "caltech256" / caltech256.FOLDER
    (base / "002.american-flag").rename(base / "009.american-flag")
    with pytest.raises(KdepError, match="without gaps"):
        caltech256.classes(tmp_path / "caltech256")


# ---- archives ----


def tar(path: Path, files: dict[str, bytes], extra: tarfile.TarInfo | None = None) -> Path:
    """Writes a .tar or .tgz of these files, with `extra` as the last member; returns the path."""
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if extra is not None:
            archive.addfile(extra)
    return path


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    """A tar member that is a link to /etc/passwd or a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "name", ["/abs.jpg", "../up.jpg", "a/../../b", "C:\\x", "C:", "C:x", "a\\b", "a\nb"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_with_names_that_lead_out_of_the_folder_are_refused(
    tmp_path: Path, name: str, kind: str
) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar(path, {"fine.jpg": b"x", name: b"x"})
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("fine.jpg", "x")
            archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(KdepError, match="could lead out of its folder"):
        unpack(path, tmp_path / "out", quiet)
    assert not list((tmp_path / "out").rglob("*.jpg"))  # refused before the first file


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tar(tmp_path / "a.tar", {"fine.jpg": b"x"}, link("odd", kind))
    with pytest.raises(KdepError, match=r"link|device"):
        unpack(path, tmp_path / "out", quiet)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("odd")
    info.external_attr = 0o120777 << 16  # the Unix mode of a symbolic link
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(KdepError, match="link"):
        unpack(tmp_path / "a.zip", tmp_path / "out", quiet)


def test_a_link_in_the_target_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    path = tar(tmp_path / "a.tar", {"a/b.jpg": b"x"})
    with pytest.raises(KdepError, match=r"through a link.*move that link to another folder"):
        unpack(path, tmp_path / "out", quiet)
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "out" / "a").rename(tmp_path / "link")
    unpack(path, tmp_path / "out", quiet)
    assert (tmp_path / "out/a/b.jpg").read_bytes() == b"x"


def test_interrupted_unpacking_resumes_and_a_finished_archive_is_not_unpacked_again(
    tmp_path: Path,
) -> None:
    files = {f"d/{i}.jpg": bytes([i]) * 50 for i in range(6)}
    path, out = tar(tmp_path / "a.tgz", files), tmp_path / "out"
    (out / "d").mkdir(parents=True)
    (out / "d/0.jpg").write_bytes(files["d/0.jpg"])
    (out / "d/1.jpg").write_bytes(b"half")
    # Only 0.jpg has the right content; 6 files of 50 bytes.
    assert unpack(path, out, quiet) == {"files": 6, "bytes": 300, "skipped": 1}
    assert all((out / n).read_bytes() == data for n, data in files.items())
    (out / "d/0.jpg").unlink()  # the user removes a file after the unpacking: it stays removed
    assert unpack(path, out, quiet)["skipped"] == 6
    assert not list(out.rglob(".unpack.*"))


@pytest.mark.parametrize("suffix", ["tar", "tgz", "zip"])
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    path, data = tmp_path / f"a.{suffix}", np.random.default_rng(0).bytes(60000)
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.jpg", data)
    else:
        tar(path, {"a.jpg": data})
    path.write_bytes(path.read_bytes()[:30000])
    with pytest.raises(KdepError, match=r"damaged or truncated|not a tar or zip|ends \d+ bytes"):
        unpack(path, tmp_path / "out", quiet)
    assert not (tmp_path / "out/a.jpg").exists()


def test_an_archive_of_wrong_size_or_checksum_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.jpg": b"x"})
    with pytest.raises(KdepError, match="download it again"):
        check_archive(path, Archive("a.tar", "", bytes=7), quiet)
    with pytest.raises(KdepError, match=r"MD5 .* 00 \(somewhere\)"):
        check_archive(path, Archive("a.tar", "", "00", "somewhere"), quiet)


def test_imagenet_s_nested_tars_are_unpacked_into_class_folders(tmp_path: Path) -> None:
    """Truncated archives are refused; after a failed check all files are compared again."""
    make("imagenet", tmp_path / "source")
    train, class_tars = tmp_path / "source/imagenet/train", {}
    for wnid in imagenet.TINY_WNIDS:
        images = {p.name: p.read_bytes() for p in sorted((train / wnid).iterdir())}
        class_tars[f"{wnid}.tar"] = tar(tmp_path / "inner.tar", images).read_bytes()
    downloads = tmp_path / "down"
    downloads.mkdir()
    path = tar(downloads / imagenet.TRAIN, class_tars)
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) // 2])
    dataset, root = get_set("imagenet"), tmp_path / "root"
    with pytest.raises(KdepError, match=r"truncated|ends"):
        lay_out(dataset, root, [downloads], quiet, checksums=False)
    path.write_bytes(complete)
    # The official MD5: this archive is not the official one.
    with pytest.raises(KdepError, match="1d675b47d978889d74fa0da5fadfb00e"):
        lay_out(dataset, root, [downloads], quiet)
    lay_out(dataset, root, [downloads], quiet, checksums=False)
    counts = verify(dataset, root, None, check_counts=False)
    assert counts == {"train_classes": 4, "train_images": 4 * imagenet.TINY_IMAGES}
    first = root / "imagenet/train" / imagenet.TINY_WNIDS[0]
    expected = {p.name: p.read_bytes() for p in first.iterdir()}
    for p in first.iterdir():
        p.write_bytes(b"x")
    with pytest.raises(KdepError, match="not an image"):
        verify(dataset, root, None, check_counts=False)
    # The failed check removed the records that the archives were unpacked.
    lay_out(dataset, root, [downloads], quiet, checksums=False)
    assert {p.name: p.read_bytes() for p in first.iterdir()} == expected
    # tarfile pads to a multiple of 10,240 bytes. Without the end-of-archive blocks, a class may be
    # missing.
    path.write_bytes(complete[: len(complete) - 10240])
    with pytest.raises(KdepError, match=r"end-of-archive|damaged"):
        lay_out(dataset, tmp_path / "new", [downloads], quiet, checksums=False)


def test_validation_images_go_to_the_class_that_the_ground_truth_names(tmp_path: Path) -> None:
    """The devkit's class numbers are in a different order than the folders' names."""
    from scipy.io import savemat

    wnids = ["n00000020", "n00000010", "n00000030"]  # of the class numbers 1, 2, 3
    rows = [(k + 1, wnid, 0) for k, wnid in enumerate(wnids)]
    rows.append((4, "n00000001", 2))  # it has children, so it is not a class of the challenge
    columns = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    savemat(tmp_path / "meta.mat", {"synsets": np.array(rows, dtype=columns).reshape(-1, 1)})
    downloads = tmp_path / "down"
    downloads.mkdir()
    class_tars = {
        f"{w}.tar": tar(tmp_path / "inner.tar", {f"{w}_1.JPEG": w.encode()}).read_bytes()
        for w in wnids
    }
    tar(downloads / imagenet.TRAIN, class_tars)
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)]
    tar(downloads / imagenet.VAL, {n: n.encode() for n in names})
    truth = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    files = {
        "ILSVRC2012_devkit_t12/data/meta.mat": (tmp_path / "meta.mat").read_bytes(),
        truth: b"2\n3\n1\n2\n",  # class number of each validation image
    }
    tar(tmp_path / "devkit.tgz", files).rename(downloads / imagenet.DEVKIT)
    root = tmp_path / "root"
    devkit = (downloads / imagenet.DEVKIT).rename(tmp_path / "devkit.tgz")
    with pytest.raises(KdepError, match="download ILSVRC2012_devkit_t12"):
        lay_out(get_set("imagenet"), root, [downloads], quiet, checksums=False)
    devkit.rename(downloads / imagenet.DEVKIT)
    lay_out(get_set("imagenet"), root, [downloads], quiet, checksums=False)
    images_by_path = {
        p.relative_to(root / "imagenet/val").as_posix(): p.read_bytes()
        for p in (root / "imagenet/val").rglob("*.JPEG")
    }
    folders = ["n00000010", "n00000030", "n00000020", "n00000010"]
    assert images_by_path == {f"{w}/{n}": n.encode() for w, n in zip(folders, names, strict=True)}
    # Images that are sorted already stay in their folders.
    lay_out(get_set("imagenet"), root, [downloads], quiet, checksums=False)
    assert len(list((root / "imagenet/val").rglob("*.JPEG"))) == 4
    # The fix for a damaged file names the set and its root.
    next((root / "imagenet/val").rglob("*1.JPEG")).rename(root / "imagenet/val" / names[0])
    (root / "imagenet/devkit/data/ILSVRC2012_validation_ground_truth.txt").write_bytes(b"")
    with pytest.raises(KdepError, match=f"data imagenet --root {root} "):
        lay_out(get_set("imagenet"), root, [downloads], quiet, checksums=False)


def test_a_damaged_imagenet_image_is_refused_and_png_or_cmyk_is_not(tmp_path: Path) -> None:
    """The release has a PNG and CMYK JPEGs under the suffix .JPEG."""
    dataset = make("imagenet", tmp_path)
    files = sorted((tmp_path / "imagenet/train").rglob("*.JPEG"))
    Image.open(files[0]).convert("RGB").save(files[0], format="PNG")
    Image.open(files[1]).convert("CMYK").save(files[1], format="JPEG")
    verify(dataset, tmp_path, None, check_counts=False)
    files[2].write_bytes(files[2].read_bytes()[:-200])
    with pytest.raises(KdepError, match=files[2].name):
        verify(dataset, tmp_path, None, check_counts=False)


def test_prepare_data_unpacks_voc_from_its_archives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny archives are unpacked and SBD is converted; then the small counts are refused."""
    make("voc", tmp_path / "source")
    source, downloads = tmp_path / "source/voc", tmp_path / "down"
    downloads.mkdir()
    for archive, year in zip(get_set("voc").archives, ("2007", "2007", "2012"), strict=False):
        members = [p for p in sorted(source.rglob(f"VOC{year}/**/*")) if p.is_file()]
        is_test = "test" in archive.name
        members = [p for p in members if year == "2012" or (("test" in p.name) == is_test)]
        members = [p for p in members if "Aug" not in str(p) and p.name != "aug.txt"]
        files = {str(p.relative_to(source)): p.read_bytes() for p in members}
        tar(downloads / archive.name, files)
    sbd = {
        f"benchmark_RELEASE/{p.relative_to(source / 'sbd')}": p.read_bytes()
        for p in sorted((source / "sbd").rglob("*"))
        if p.is_file()
    }
    tar(downloads / "benchmark.tgz", sbd)
    args = ["voc", "--root", str(tmp_path / "root"), "--archives", str(downloads), "--no-checksums"]
    assert prepare_data.main(args) == 2
    assert "as in the official release" in capsys.readouterr().err
    assert verify(get_set("voc"), tmp_path / "root", None, check_counts=False)
    (downloads / "benchmark.tgz").unlink()
    assert prepare_data.main([*args[:2], str(tmp_path / "other"), *args[3:]]) == 2
    assert "was not found in" in capsys.readouterr().err


# ---- the stage ----


def test_prepare_links_the_sets_and_writes_the_labels_of_the_pool(tmp_path: Path) -> None:
    spec = {"sets": ["coco", "voc"], "pool": "imagenet", "tiny_seed": 0}
    out = tmp_path / "stage"
    out.mkdir()
    outputs = prepare(spec, {}, out, quiet)
    assert outputs["counts"]["images"]["pool"] == 4 * imagenet.TINY_IMAGES
    assert list(outputs["counts"]) == ["images", "coco", "imagenet", "voc"]  # a fixed order
    labels = json.loads((out / "data/pool/labels.json").read_text())
    for name, number in labels["labels"].items():
        assert (out / "data/pool/images" / name).is_file()
        assert name.startswith(labels["classes"][number])
    moved = out.rename(tmp_path / "moved")
    assert (moved / "data/coco/train2017").is_dir()
    assert (moved / "data/pool/images" / next(iter(labels["labels"]))).is_file()
    second = tmp_path / "again"
    second.mkdir()
    assert prepare(spec, {}, second, quiet)["fingerprint"] == outputs["fingerprint"]


@pytest.mark.parametrize("name", ["voc", "dtd"])
def test_a_tiny_copy_has_the_same_bytes_at_another_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scipy writes the time into MATLAB files, which would change the fingerprint."""
    import time

    copies = []
    for year in ("1999", "2099"):
        monkeypatch.setattr(time, "asctime", lambda *_, year=year: f"Thu Jan  1 00:00:00 {year}")
        make(name, tmp_path / year)
        files = sorted(p for p in (tmp_path / year).rglob("*") if p.is_file())
        copies.append({p.relative_to(tmp_path / year): p.read_bytes() for p in files})
    assert copies[0] == copies[1]


def test_an_empty_class_folder_of_the_pool_keeps_its_class_number(tmp_path: Path) -> None:
    for name in ("a/1.png", "c/1.png", "c/2.png"):
        (tmp_path / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pool" / name).touch()
    (tmp_path / "pool" / "b").mkdir()
    out = tmp_path / "stage"
    assert stage._link_pool(tmp_path / "pool", out / "data" / "pool", out) == 3
    table = json.loads((out / "data/pool/labels.json").read_text())
    assert table["classes"] == ["a", "b", "c"]
    assert table["labels"] == {"a/1.png": 0, "c/1.png": 2, "c/2.png": 2}


def test_prepare_refuses_an_incomplete_set_and_an_unknown_key(tmp_path: Path) -> None:
    make("imagenet", tmp_path)
    with pytest.raises(KdepError, match="official release"):
        prepare({"sets": [], "pool": "imagenet", "root": str(tmp_path)}, {}, tmp_path, quiet)
    with pytest.raises(KdepError, match="unknown key"):
        prepare({"sets": [], "pool": "imagenet", "roots": ""}, {}, tmp_path, quiet)


def test_the_list_shows_every_checksum(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_data.main(["--list"]) == 0
    output = capsys.readouterr().out
    assert "md5 unknown" in output
    assert "1d675b47d978889d74fa0da5fadfb00e" in output


def replace_text(path: Path, old: str, new: str) -> None:
    """Replaces a text that must be in the file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def assert_refused(name: str, root: Path, match: str) -> None:
    """Asserts that verifying the set raises an error that matches."""
    with pytest.raises(KdepError, match=match):
        verify(get_set(name), root, 1, check_counts=False)


def test_a_wrong_label_in_a_list_of_caltech_is_refused(tmp_path: Path) -> None:
    make("caltech256", tmp_path)
    path = tmp_path / "caltech256/kdep_test.txt"
    replace_text(path, "001.ak47/001_0005.jpg 0", "001.ak47/001_0005.jpg 1")
    assert_refused("caltech256", tmp_path, r"001_0005.jpg 1.*that class folder, from 0: 0")
    path.unlink()
    caltech256.write_lists(tmp_path / "caltech256", 4)  # the advised command does this
    verify(get_set("caltech256"), tmp_path, 1, check_counts=False)


def test_a_wrong_label_of_cub_is_refused(tmp_path: Path) -> None:
    make("cub200", tmp_path)
    base = tmp_path / "cub200/CUB_200_2011"
    replace_text(base / "image_class_labels.txt", "\n7 2\n", "\n7 3\n")
    assert_refused("cub200", tmp_path, "image 7 the class 3.*002.Blue_Wren")


def test_a_list_that_names_a_file_twice_is_refused(tmp_path: Path) -> None:
    make("cub200", tmp_path)
    path = tmp_path / "cub200/CUB_200_2011/images.txt"
    rows = path.read_text().splitlines()
    rows[1] = f"2 {rows[0].split(' ')[1]}"
    path.write_text("\n".join(rows))
    assert_refused("cub200", tmp_path, "occurs twice in .*images.txt")
    make("voc", tmp_path)
    path = tmp_path / "voc/VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    path.write_text(path.read_text() + path.read_text())
    assert_refused("voc", tmp_path, "occurs twice in test")


def test_a_class_number_of_dtd_that_contradicts_its_folder_is_refused(tmp_path: Path) -> None:
    from kdep_bench.data.official import dtd

    table = {"name": ["a/1.jpg", "b/1.jpg", "b/2.jpg"], "class": [1, 2, 2]}
    dtd._check_labels(tmp_path, table)
    dtd._check_labels(tmp_path, {**table, "class": [3, 7, 7]})
    with pytest.raises(KdepError, match=r"b/2.jpg has the class 1, but .* folder have the class 2"):
        dtd._check_labels(tmp_path, {**table, "class": [1, 2, 1]})
    with pytest.raises(KdepError, match="in the alphabetical order of the textures"):
        dtd._check_labels(tmp_path, {**table, "class": [2, 1, 1]})


def test_validation_images_of_imagenet_outside_class_folders_are_refused(tmp_path: Path) -> None:
    make("imagenet", tmp_path)
    folder = sorted((tmp_path / "imagenet/val").iterdir())[0]
    file = sorted(folder.iterdir())[0]
    file.rename(tmp_path / "imagenet/val/ILSVRC2012_val_00000009.JPEG")
    assert_refused("imagenet", tmp_path, "00000009.JPEG is not in a class folder")


def test_voc_training_images_in_the_test_list_are_refused(tmp_path: Path) -> None:
    make("voc", tmp_path)
    year = tmp_path / "voc/VOCdevkit/VOC2007"
    name = (year / "ImageSets/Main/test.txt").read_text().splitlines()[0]
    with (year / "ImageSets/Main/trainval.txt").open("a") as file:
        file.write(f"{name}\n")
    assert_refused("voc", tmp_path, f"share 1 images, the first is {name}")
