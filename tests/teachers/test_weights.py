"""Weights are read from a file or, with download=True, from a hub; each fault has its message."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.teachers import torchvision_models, weights
from kdep_bench.teachers.mmpretrain_models import MMPretrain
from kdep_bench.teachers.timm_models import Timm
from kdep_bench.teachers.torchvision_models import Torchvision
from tests.teachers.conftest import assert_close, output_of, random_images, randomised

ARGS: dict[str, Any] = dict(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), num_classes=3)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The random weights of a tiny ConvNeXt."""
    return dict(randomised(timm.create_model("convnext_atto", **ARGS)).state_dict())


def teacher(path: Path | str | None, **options: Any) -> Timm:
    """That ConvNeXt as a teacher, with weights from `path`."""
    return Timm("t", "convnext_atto", 32, weights=path, args=ARGS, **options)


def write(path: Path, content: Any) -> Path:
    """Saves the content; returns the file."""
    torch.save(content, path)
    return path


def test_every_supported_file_layout_gives_the_same_teacher(
    tmp_path: Path, state: dict[str, Tensor]
):
    plain = write(tmp_path / "plain.pth", state)
    save_file(state, tmp_path / "a.safetensors")
    wrapped = write(tmp_path / "w.pth", {"epoch": 1, "state_dict": state, "args": {"lr": 0.1}})
    both = {"model": {"x": torch.ones(1)}, "model_ema": state}
    ema_file = write(tmp_path / "ema.pth", both)
    with_surplus = {f"net.{k}": v for k, v in state.items()} | {"net.extra.x": torch.ones(1)}
    prefixed = write(tmp_path / "p.pth", with_surplus)
    checksums = {
        t.checksum()
        for t in (
            teacher(plain),
            teacher(str(tmp_path / "a.safetensors")),
            teacher(wrapped),
            teacher(ema_file, key="model_ema"),
            teacher(prefixed, prefix="net.", drop=["extra."]),
            teacher(plain, sha256=hashlib.sha256(plain.read_bytes()).hexdigest()),
        )
    }
    assert len(checksums) == 1
    assert checksums != {teacher("random").checksum()}


def test_a_teacher_without_logits_ignores_the_classifier_in_the_file(
    tmp_path: Path, state: dict[str, Tensor]
):
    path = write(tmp_path / "plain.pth", state)
    complete, headless = teacher(path), teacher(path, has_logits=False)
    images = random_images(32)
    assert_close(output_of(complete, images).pooled, output_of(headless, images).pooled)
    assert output_of(headless, images).logits is None


def test_half_precision_files_are_read_as_float32(tmp_path: Path, state: dict[str, Tensor]):
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    out = output_of(teacher(write(tmp_path / "half.pth", half)), random_images(32))
    assert out.pooled.dtype is torch.float32


def test_old_checkpoints_without_batch_counters_are_accepted(tmp_path: Path):
    net = randomised(timm.create_model("resnet18", num_classes=3))
    old = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = write(tmp_path / "old.pth", old)
    teacher_of_old = Timm("old", "resnet18", 32, weights=path, args=dict(num_classes=3))
    assert_close(
        teacher_of_old.net.state_dict()["layer4.1.bn2.running_var"], old["layer4.1.bn2.running_var"]
    )


class RunsCode:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_faults_of_a_file_raise_kdep_error(tmp_path: Path, state: dict[str, Tensor]):
    first = next(iter(state))
    plain = write(tmp_path / "plain.pth", state)
    faults: list[tuple[Any, dict[str, Any], str]] = [
        ({k: v for k, v in state.items() if k != first}, {}, "1 missing"),
        (state | {"new": torch.ones(1)}, {}, r"1 unexpected \(new\)"),
        (state | {first: torch.ones(1)}, {}, "1 of another shape"),
        (state | {first: torch.full_like(state[first], torch.nan)}, {}, "NaN or infinity"),
        ({f"a.b.{k}": v for k, v in state.items()}, {}, r"set prefix='a\.b\.'"),
        (state, dict(prefix="backbone."), "begins with 'backbone.'.* and [0-9]+ more. Fix"),
        (state, dict(drop=["text."]), "begins with 'text.'"),
        (state, dict(sha256="00000000"), "SHA-256 that starts with 00000000"),
        (state, dict(sha256="XY"), "hex digits"),
        (state, dict(key="ema"), "no set of tensors 'ema'"),
        ({"a": state, "b": state}, {}, "several sets of tensors: a, b"),
        ({"a": 1, **state}, {}, "not tensors"),
        ({}, {}, "no tensor"),
        ({"x": RunsCode()}, {}, "more than plain weights"),
    ]
    for i, (content, options, message) in enumerate(faults):
        with pytest.raises(KdepError, match=message):
            teacher(write(tmp_path / f"{i}.pth", content), **options)
    interrupted = tmp_path / "cut.pth"
    interrupted.write_bytes(plain.read_bytes()[:-200])
    with pytest.raises(KdepError, match="is damaged or truncated"):
        teacher(interrupted)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00" * 20)
    with pytest.raises(KdepError, match="of an unknown format"):
        teacher(broken)
    with pytest.raises(KdepError, match="does not exist"):
        teacher(tmp_path / "nowhere.pth")


def test_a_dot_in_key_separates_nested_entries_or_belongs_to_a_name(
    tmp_path: Path, state: dict[str, Tensor]
):
    other = {k: v + 1 for k, v in state.items()}
    right = teacher(write(tmp_path / "plain.pth", state)).checksum()
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    both = {"state_dict": {"model": state, "ema": other}, "optimizer": optimizer, "epoch": 3}
    nested = write(tmp_path / "nested.pth", both)
    assert teacher(nested, key="state_dict.model").checksum() == right
    assert teacher(nested, key="state_dict.ema").checksum() != right
    with pytest.raises(KdepError, match=r"several sets of tensors: state_dict\.model, state_dict"):
        teacher(nested)
    for i, (content, key) in enumerate(
        (
            ({"a.b": state, "a": {"c": other}}, "a.b"),
            ({"a": {"b.c": state, "x": other}}, "a.b.c"),
            ({"a.b": {"c": state, "x": other}}, "a.b.c"),
            ({"state_dict": {"model": state}, "optimizer": optimizer}, None),
            ({"model": state, "optimizer": optimizer}, None),
        )
    ):
        assert teacher(write(tmp_path / f"{i}.pth", content), key=key).checksum() == right
    with pytest.raises(KdepError, match=r"'a\.b' is ambiguous.*2 sets of tensors"):
        teacher(write(tmp_path / "two.pth", {"a.b": state, "a": {"b": other}}), key="a.b")
    with pytest.raises(KdepError, match=r"one of: 'state_dict\.model', 'state_dict\.ema'"):
        teacher(nested, key="state_dict.modell")
    with pytest.raises(KdepError, match="remove `key=`"):
        teacher(tmp_path / "plain.pth", key="model")


def test_every_fix_for_a_wrong_sha256_works(tmp_path: Path, state: dict[str, Tensor]):
    path = write(tmp_path / "plain.pth", state)
    with pytest.raises(KdepError, match="sha256=None") as error:
        teacher(path, sha256="0" * 64)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"has the SHA-256 {digest}" in str(error.value)
    assert "configs/teachers/microsoft_resnet50.py" in str(error.value)
    assert Path("configs/teachers/microsoft_resnet50.py").is_file()
    same = {teacher(path, sha256=s).checksum() for s in (digest, digest[:8], digest.upper(), None)}
    assert len(same) == 1
    for wrong in (123, "", "0" * 7, "xyz" * 10):
        with pytest.raises(KdepError, match="8 to 64 hex digits"):
            teacher(path, sha256=wrong)


def test_integer_complex_and_boolean_weights_are_refused(tmp_path: Path, state: dict[str, Tensor]):
    first = next(k for k in state if k.endswith("weight"))
    for i, other in enumerate(
        (
            state[first].to(torch.int8),
            state[first].to(torch.complex64) + 1j,
            torch.zeros_like(state[first]).bool(),
        )
    ):
        with pytest.raises(KdepError, match="another kind of number"):
            teacher(write(tmp_path / f"{i}.pth", state | {first: other}))


def test_the_error_for_names_of_data_parallel_states_the_prefix_to_set(tmp_path: Path, state: Any):
    path = write(tmp_path / "p.pth", {f"module.{k}": v for k, v in state.items()})
    with pytest.raises(KdepError, match=r"set prefix='module\.'"):
        teacher(path)
    plain = write(tmp_path / "plain.pth", state)
    assert teacher(path, prefix="module.").checksum() == teacher(plain).checksum()


@pytest.mark.parametrize("weights", [5, b"a.pth", "", ["a"], True])
def test_weights_that_are_not_a_path_raise_kdep_error(weights: Any):
    with pytest.raises(KdepError, match="the path of a file"):
        teacher(weights)


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty download folders, and no access to the network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "model", "where"),
    [
        (Timm, "resnet18.a1_in1k", r"huggingface\.co/timm/resnet18\.a1_in1k \(about 47 MB\)"),
        (Torchvision, "resnet18", r"resnet18-f37072fd\.pth \(45 MB\)"),
        (MMPretrain, "resnet18_8xb32_in1k", r"resnet18_8xb32_in1k_20210831-fbbb1da6\.pth \(about"),
    ],
)
def test_a_hub_name_reports_what_would_be_downloaded(
    empty_caches: Path, kind: Any, model: str, where: str
):
    with pytest.raises(KdepError, match=where) as error:
        kind("t", model, 32)
    assert "download=True" in str(error.value)


def test_a_failed_download_raises_kdep_error(empty_caches: Path):
    with pytest.raises(
        KdepError, match=r"could not be downloaded from https://huggingface\.co/timm"
    ):
        Timm("t", "resnet18.a1_in1k", 32, download=True)
    gone = weights.url_hub((empty_caches / "gone-01234567.pth").as_uri())
    with pytest.raises(KdepError, match="could not be downloaded from file://"):
        weights.find_weights("t", None, gone, True)


def test_a_download_is_checked_kept_and_found_again(empty_caches: Path, state: dict[str, Tensor]):
    source = write(empty_caches / "a.pth", state)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    named = source.rename(empty_caches / f"net-{digest[:8]}.pth")
    hub = weights.url_hub(named.as_uri())
    with pytest.raises(KdepError, match="download=True"):
        weights.find_weights("t", None, hub, False)
    path = weights.find_weights("t", None, hub, True)
    assert path.read_bytes() == named.read_bytes()
    same_hub = weights.url_hub(named.as_uri())
    assert weights.find_weights("t", None, same_hub, False) == path
    path.write_bytes(b"other")
    with pytest.raises(KdepError, match="differs from the one in its name"):
        weights.find_weights("t", None, same_hub, False)
    wrong = named.rename(empty_caches / "net-00000000.pth")
    with pytest.raises(KdepError, match="could not be downloaded"):
        weights.find_weights("t", None, weights.url_hub(wrong.as_uri()), True)


def test_no_source_and_unknown_weights_raise_kdep_error(tmp_path: Path):
    with pytest.raises(KdepError, match="has no weights"):
        weights.find_weights("t", None, None, True)
    with pytest.raises(KdepError, match="did you mean IMAGENET1K_V2"):
        torchvision_models.hub("resnet50", "IMAGENET1K_V3")
