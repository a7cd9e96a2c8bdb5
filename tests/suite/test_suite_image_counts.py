"""Suites that need more images than the data have, or parts that the data lack, are refused.

Many tests also make the change that the error advises: the changed suite is accepted.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_suite_config import SUITE, build

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite, resolve
from kdep_bench.suite.image_counts import CountedRun, check_counts, check_nonempty_fraction
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Suite

REPO = Path(__file__).resolve().parents[2]


def refusal(suite: Suite) -> str:
    """The error of the suite; asserts that it is one line."""
    with pytest.raises(KdepError) as error:
        accept(suite)
    assert "\n" not in str(error.value)
    return str(error.value)


def accept(suite: Suite) -> None:
    """Plans the suite and checks its counts; raises KdepError if it is impossible."""
    build_plan(suite)
    check_counts(suite)


def budget(**changes: Any) -> dict[str, Any]:
    """The budget of SUITE with changes."""
    return {**SUITE["budget"], **changes}


def make_images(folder: Path, count: int) -> None:
    """Creates empty files with image names, which these tests do not decode."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(b"")


def user_data(root: Path, pool: int = 300, **parts: Any) -> dict[str, Any]:
    """The data config of a user's folder whose pool has this number of images."""
    make_images(root / "pool/a", pool - pool // 2)
    make_images(root / "pool/b", pool // 2)
    kind = "kdep_bench.data.own.prepare"
    return dict(
        type=kind, name="own", labels=True, pool_labels=True, pool=str(root / "pool"), **parts
    )


def classes(root: Path, *per_class: int, **splits: int) -> dict[str, str]:
    """A `classify` part with these numbers of images per class in every split."""
    for split in ("train", "val", "test"):
        for k, count in enumerate(per_class):
            make_images(root / split / f"class{k}", count)
    return {split: str(root / split) for split in ("train", "val", "test")}


# ---- budgets ----


def test_a_batch_larger_than_the_number_of_images_is_refused(tmp_path):
    """With a batch of 4,096, one step over 90 images would be 45.5 epochs."""
    data = user_data(tmp_path, 90)
    suite_changes = dict(data=data, methods=["supervised"], tasks=probe_of(data, tmp_path))
    message = refusal(build(**suite_changes, budget=budget(batch=4096)))
    assert "45.5 epochs" in message
    fix = re.search(r"set budget.batch to at most (\d+)", message)
    assert fix is not None
    assert "share" not in message.partition(" Fix: ")[2]  # no larger data fraction exists
    accept(build(**suite_changes, budget=budget(batch=int(fix[1]))))


def probe_of(data: dict[str, Any], root: Path) -> list[Any]:
    """A linear-probe task on classes with enough images."""
    data["classify"] = classes(root / "classes", 20, 20)
    return [dict(base="smoke_probe", recipe=dict(train_share=1.0))]


def test_the_error_for_a_batch_larger_than_a_data_fraction_names_a_sufficient_fraction():
    supervised = dict(budget=budget(batch=8), methods=["supervised"])
    message = refusal(build(shares=[0.01], **supervised))  # 4 of 400 images
    fix = re.search(r"a data fraction of ([\d.]+) or more", message)
    assert fix is not None
    accept(build(shares=[float(fix[1])], **supervised))


@pytest.mark.parametrize("fraction", [0.001, 0.01])  # 0 and 4 of 400 images
def test_a_fraction_too_small_for_the_batch_and_the_alignment_is_one_error(fraction):
    """One correction is enough: the larger one of the two fractions that the error names."""
    with pytest.raises(KdepError, match="has 2 faults") as error:
        accept(build(shares=[1.0, fraction], budget=budget(batch=8)))
    fixes = re.findall(r"a data fraction of ([\d.]+) or more", str(error.value))
    assert len(fixes) == 2
    accept(build(shares=[1.0, max(map(float, fixes))], budget=budget(batch=8)))


def test_epochs_of_less_than_one_batch_are_refused():
    """Otherwise epochs=0.01 would train for 0.16 epochs (one batch of 64 from 400 images)."""
    message = refusal(build(budget=budget(batch=64, epochs=0.01)))  # 1 % of 400 images
    assert "4 samples" in message
    fix = re.search(r"set budget.epochs to ([\d.]+) or more", message)
    assert fix is not None
    accept(build(budget=budget(batch=64, epochs=float(fix[1]))))


def test_epochs_over_the_pool_are_counted_over_all_images():
    accept(build(methods=["supervised"], shares=[0.05], budget=budget(epochs_over="pool")))
    over = budget(batch=20, epochs=0.1, epochs_over="pool")
    accept(build(methods=["supervised"], shares=[0.05], budget=over))
    assert "2 samples" in refusal(
        build(methods=["supervised"], shares=[0.05], budget=budget(batch=20, epochs=0.1))
    )


def test_a_weight_average_that_is_still_the_initial_weights_is_refused():
    """With a decay of 0.9999 over 50 steps, the average would be 99.5 % initial random weights."""
    message = refusal(build(budget=budget(ema=0.9999)))
    assert "100 % of the average" in message  # rounded
    fix = re.search(r"set budget.ema to ([\d.]+) or less", message)
    assert fix is not None
    accept(build(budget=budget(ema=float(fix[1]))))


def test_the_epochs_of_an_intermediate_teacher_are_checked():
    chain = dict(base="takd", teacher=dict(student="resnet18_w48", method="logit_kd", epochs=0.01))
    message = refusal(build(methods=[chain]))
    assert "resnet18_w48" in message
    assert "0.01 epochs" in message


# ---- widths ----


def test_the_fix_for_fewer_images_than_the_student_s_width_is_possible(tmp_path):
    """The fix must not be a larger data fraction, as all data are used."""
    data = user_data(tmp_path, 24)
    tasks = probe_of(data, tmp_path)
    message = refusal(build(data=data, tasks=tasks))
    assert "24 features, too few to estimate 256 directions" in message
    assert "share" not in message.partition(" Fix: ")[2]
    fix = re.search(r"set budget.views to (\d+) or more", message)
    assert fix is not None
    accept(build(data=data, tasks=tasks, budget=budget(views=int(fix[1]))))
    accept(build(data=data, tasks=tasks, methods=["conv1x1", "scratch"]))
    make_images(tmp_path / "pool/c", 257 - 24)
    accept(build(data=data, tasks=tasks))


def test_the_error_for_a_data_fraction_too_small_for_the_width_names_a_sufficient_fraction():
    message = refusal(build(shares=[0.5]))
    fix = re.search(r"use a data fraction of ([\d.]+) or more", message)
    assert fix is not None
    accept(build(shares=[float(fix[1])]))


def test_the_alignment_stage_s_fix_is_possible_with_all_data():
    from kdep_bench.features.policies import check_rows

    with pytest.raises(KdepError) as error:
        check_rows(24, 1, 256, 1.0, 24, "the alignment")
    assert "share" not in error.value.fix


def test_hidden_folders_and_other_files_are_not_counted_as_images(tmp_path):
    """A hidden folder and a text file are ignored."""
    data = user_data(tmp_path, 24)
    make_images(tmp_path / "pool/.cache", 500)
    (tmp_path / "pool/a/readme.txt").write_text("x")
    assert "24 images" in refusal(build(data=data, tasks=probe_of(data, tmp_path)))


# ---- parts and splits ----


def detection() -> dict[str, Any]:
    """A detection task."""
    return dict(base="smoke_det")


def coco(root: Path, *splits: str) -> dict[str, Any]:
    """A `coco` part with these splits."""
    return {s: dict(json=str(root / f"{s}.json"), images=str(root / s)) for s in splits}


def test_a_task_without_its_part_of_the_data_is_refused_with_a_fix_that_works(tmp_path):
    """The fix must not be to prepare the data again, as the config lacks the part."""
    data = user_data(tmp_path, 300)
    message = refusal(build(data=data, tasks=[detection()]))
    assert "has no `coco`" in message
    assert "prepare" not in message
    accept(build(data=dict(data, coco=coco(tmp_path, "train", "test")), tasks=[detection()]))


def test_a_missing_split_gives_an_error_that_names_it(tmp_path):
    data = user_data(tmp_path, 300, coco=coco(tmp_path, "train"))
    message = refusal(build(data=data, tasks=[detection()]))
    assert "add coco.test" in message
    accept(build(data=dict(data, coco=coco(tmp_path, "train", "test")), tasks=[detection()]))


def test_a_linear_probe_without_a_validation_split_is_refused(tmp_path):
    data = user_data(tmp_path, 300, classify=classes(tmp_path / "c", 20, 20) | dict(val=None))
    message = refusal(build(data=data, tasks=["smoke_probe"]))
    assert "add classify.val" in message
    accept(build(data=data, tasks=["smoke_finetune"], budget=budget(), methods=["supervised"]))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (dict(base="smoke_probe", split="tst"), "classify/tst"),
        ("smoke_photos", "the folder 'photos'"),
        ("smoke_seg", "no `masks`"),
        ("cifar100", "no official set"),
    ],
)
def test_other_missing_parts_of_user_data_are_refused(tmp_path, task, message):
    data = user_data(tmp_path, 300, classify=classes(tmp_path / "c", 20, 20))
    assert message in refusal(build(data=data, tasks=[task]))


def test_an_official_set_that_the_data_do_not_name_is_refused():
    data = dict(base="imagenet", sets=["coco"])
    message = refusal(build(data=data, tasks=["cifar100"], students=["resnet18"]))
    assert "add 'cifar100' to `sets`" in message
    data["sets"] = ["coco", "cifar100"]
    build_plan(build(data=data, tasks=["cifar100"], students=["resnet18"]))


def test_data_that_a_user_s_own_function_prepares_are_not_checked(tmp_path, monkeypatch):
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage/data.py").write_text("def prepare(spec, inputs, out, progress): ...")
    monkeypatch.syspath_prepend(tmp_path)
    data = dict(type="mypackage.data.prepare", name="theirs", whatever=1)
    accept(build(data=data, tasks=["smoke_det", "cifar100"]))


def test_labels_require_pool_labels(tmp_path):
    """With pool_labels=False there is no labels file."""
    data = user_data(tmp_path, 300, classify=classes(tmp_path / "c", 20, 20)) | dict(
        pool_labels=False
    )
    del data["labels"]
    tasks = ["smoke_probe"]
    assert "pool_labels=True" in refusal(build(data=data, tasks=tasks, methods=["supervised"]))
    accept(build(data=data, tasks=tasks))
    message = refusal(build(data=data, tasks=tasks, share_by="class", shares=[0.9]))
    assert "have no labels" in message
    accept(build(data=data | dict(pool_labels=True), tasks=tasks, methods=["supervised"]))


# ---- recipes ----


@pytest.mark.parametrize(
    ("task", "recipe", "message"),
    [
        ("smoke_det", dict(iters=0), "of at least 1"),
        ("smoke_det", dict(warmup=10), "warmup=10 and iters=10"),
        ("smoke_det", dict(batch=0), "of at least 1"),
        ("smoke_det", dict(lr=0.0), "greater than 0"),
        ("smoke_det", dict(lr="fast"), "number"),
        ("smoke_det", dict(momentum=1.0), "less than 1"),
        ("smoke_det", dict(steps=[0.92, 0.75]), "increasing"),
        ("smoke_det", dict(steps=[0.75, 1.2]), "of at most 1"),
        ("smoke_det", dict(scale=[160]), "2 numbers"),
        ("smoke_det", dict(clip_norm=-1.0), "greater than 0"),
        ("smoke_seg", dict(warmup=0), "of at least 1"),
        ("smoke_seg", dict(crop=[0, 128]), "of at least 1"),
        ("smoke_seg", dict(classes=["a", "b"]), "2 classes and 9 colours"),
        ("smoke_seg", dict(classes=["a"] * 9), "the class a more than once"),
        ("smoke_seg", dict(poly_power=0), "greater than 0"),
        ("smoke_finetune", dict(epochs=0), "of at least 1"),
        ("smoke_finetune", dict(epochs=0.5), "integer"),
        ("smoke_finetune", dict(crop_scale=[1.0, 0.4]), "increasing"),
        ("smoke_finetune", dict(crop_scale=[0.0, 1.0]), "above 0"),
        ("smoke_finetune", dict(batch=96), "only 80"),
        ("smoke_probe", dict(c_grid=[]), "one or more"),
        ("smoke_probe", dict(c_grid=[0.1, -1.0]), "greater than 0"),
        ("smoke_probe", dict(train_share=0.0), "above 0"),
        ("smoke_probe", dict(train_share=1.5), "of at most 1"),
        ("smoke_probe", dict(train_share=0.05), "selects 4 of 80 images"),
        ("smoke_probe", dict(train_share=0.95), "selects 76 of 80 images"),
        ("smoke_probe", dict(protocol="fold"), "'split' or 'folds'"),
        ("smoke_photos", dict(folds=1), "2 or more"),
        ("smoke_photos", dict(inner_folds=1), "2 or more"),
    ],
)
def test_an_impossible_recipe_is_refused(task, recipe, message):
    assert message in refusal(build(tasks=[dict(base=task, recipe=recipe)]))


def test_an_official_recipe_that_never_lowers_its_learning_rate_is_refused():
    task = dict(base="cifar100", recipe=dict(epochs=40))
    message = refusal(build(data="imagenet", tasks=[task], students=["resnet18"]))
    assert "step_epochs=50 and epochs=40" in message


def test_a_detector_that_cannot_use_the_student_is_refused():
    suite = build(data="imagenet", tasks=["coco_c4"], students=["mobilenetv2"])
    assert "use the FPN task" in refusal(suite)
    build_plan(build(data="imagenet", tasks=["coco_fpn"], students=["mobilenetv2"]))


def test_a_linear_probe_with_fewer_images_per_class_than_folds_is_refused(tmp_path):
    data = user_data(tmp_path, 300, classify=classes(tmp_path / "c", 20, 4))
    recipe = dict(folder="classify/train", folds=5, inner_folds=3)
    suite = build(data=data, tasks=[dict(base="smoke_photos", recipe=recipe)])
    message = refusal(suite)
    assert "set folds=4" in message
    accept(build(data=data, tasks=[dict(base="smoke_photos", recipe=recipe | dict(folds=4))]))
    recipe |= dict(folds=2, inner_folds=3)
    message = refusal(build(data=data, tasks=[dict(base="smoke_photos", recipe=recipe)]))
    assert "set inner_folds=2" in message
    recipe |= dict(inner_folds=2)
    accept(build(data=data, tasks=[dict(base="smoke_photos", recipe=recipe)]))


def test_fine_tuning_on_fewer_images_than_its_batch_is_refused(tmp_path):
    data = user_data(tmp_path, 300, classify=classes(tmp_path / "c", 7, 8))
    message = refusal(build(data=data, tasks=["smoke_finetune"]))
    assert "15 or less" in message
    accept(build(data=data, tasks=[dict(base="smoke_finetune", recipe=dict(batch=15))]))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (dict(base="smoke_probe", metric="top_1"), "did you mean top1"),
        (dict(base="smoke_finetune", metric="mean_class_recall"), "unknown metric"),
        (dict(base="smoke_det", metric="mAP"), "bbox_mAP"),
        (dict(base="smoke_det", family="classification"), "unknown family"),
        (dict(base="smoke_seg", direction="maximum"), "'max' or 'min'"),
        (dict(base="smoke_seg", chance=9.0), "of at most 1"),
    ],
)
def test_a_metric_that_the_task_does_not_measure_is_refused(task, message):
    """Otherwise the transfer would fail after its training."""
    with pytest.raises(KdepError, match=re.escape(message)):
        accept(build(tasks=[task]))


def test_every_task_s_metric_and_family_are_those_of_its_class():
    from kdep_bench.registry import locate
    from kdep_bench.signatures import class_value
    from kdep_bench.suite.config import names
    from kdep_bench.suite.pairs import check_metric_and_family

    for name in names("task"):
        task = resolve("task", name)
        check_metric_and_family({}, task)
        kind = locate(task["type"])
        assert class_value(task["type"], "measures") == kind.measures
        assert class_value(task["type"], "families") == kind.families


def test_two_data_fractions_that_select_the_same_images_are_refused():
    message = refusal(build(shares=[0.1, 0.101], methods=["supervised"]))
    assert "the same 40 images" in message
    accept(build(shares=[0.1, 0.11], methods=["supervised"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(runtime=dict(cpus=dict(transfer=-1))), "of at least 0"),
        (dict(runtime=dict(timeout=dict(transfer=0.0))), "greater than 0"),
        (dict(methods=[dict(base="kdep", students=["resnet18_w23"])]), "did you mean resnet18_w"),
        (dict(teacher=dict(base="efficientnet_lite0", weigths="x.pth")), "did you mean weights"),
        (dict(teacher=dict(base="efficientnet_lite0", input_px="big")), "integer"),
        (dict(teacher=dict(base="efficientnet_lite0", bits=32)), "of at most 16"),
    ],
)
def test_other_wrong_entries_of_a_suite_are_refused(change, message):
    with pytest.raises(KdepError, match=re.escape(message)):
        accept(build(**change))


# ---- commands ----


def test_a_dry_run_and_the_doctor_refuse_an_impossible_suite(tmp_path):
    path = tmp_path / "s.py"
    path.write_text(f"suite = {SUITE | dict(budget=budget(batch=512))!r}\n")
    for command in (
        ["tools/run_suite.py", str(path), "--dry-run", "--work-dir", str(tmp_path / "w")],
        ["tools/doctor.py", "--suite", str(path), "--work-dir", str(tmp_path / "w")],
    ):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False, cwd=REPO
        )
        assert done.returncode == (2 if "run_suite" in command[0] else 1)
        assert "has a batch of 512, but only 400 images" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_every_task_of_the_repository_has_a_possible_recipe():
    from kdep_bench.suite.config import names
    from kdep_bench.suite.rehearse import shrink_task
    from kdep_bench.transfer.recipes import check_recipe

    for name in names("task"):
        task = resolve("task", name)
        check_recipe(name, task["recipe"])
        check_recipe(name, shrink_task(task)["recipe"])


def test_data_without_images_are_refused_before_anything_is_divided_by_their_number():
    smoke = load_suite("smoke")
    run = CountedRun(smoke, {}, {}, None, epochs=1.0, fraction=1.0, images=0, pool=0)
    with pytest.raises(KdepError, match="has no pre-training images"):
        check_nonempty_fraction(run)
