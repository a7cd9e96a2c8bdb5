"""SgVA-CLIP with texts: formulas, known answers through the stage, files that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.files import write_json
from kdep_bench.probes import extract, stage
from kdep_bench.probes.adapter import Adapters, Recipe, adapter_loss, train_adapters
from kdep_bench.probes.adapter_text import SgvaClipText, TextClassifier
from kdep_bench.probes.base import Features, Inputs, unit
from kdep_bench.probes.text import read_text_embeddings
from kdep_bench.suite.config import resolve
from kdep_bench.teachers.timm_models import Timm

NAMES = ("ant", "bee", "cat", "dog")
COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]])
SHORT: dict[str, Any] = {"shots": [1], "draws": 2, "steps": 10}


def write_texts(path: Path, text: np.ndarray, names: Sequence[str] = NAMES, **extra: Any) -> str:
    """Writes a file of text embeddings; returns its path."""
    np.savez(path, classes=np.array(names), text=text, **extra)
    return str(path)


def random_texts(path: Path, width: int = 6) -> tuple[TextClassifier, np.ndarray, np.ndarray]:
    """A text classifier with a projection from `width` to 3, and its two arrays."""
    rng = np.random.default_rng(2)
    text, projection = rng.normal(size=(4, 3)), rng.normal(size=(width, 3))
    file = write_texts(path / "t.npz", text, projection=projection)
    return TextClassifier(read_text_embeddings(file), list(NAMES), width), text, projection


def softmax(z: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_text_classifier_compares_projected_features_with_texts_by_name(tmp_path: Path) -> None:
    _, text, projection = random_texts(tmp_path)
    x = unit(np.random.default_rng(3).normal(size=(5, 6)))
    order = [2, 0, 3]  # another order than in the file, and not all of its classes
    embeddings = read_text_embeddings(tmp_path / "t.npz")
    classifier = TextClassifier(embeddings, [NAMES[k] for k in order], 6)
    expected = unit(x @ projection) @ unit(text[order]).T
    np.testing.assert_allclose(classifier(torch.from_numpy(x)[None])[0], expected, atol=1e-12)


def test_with_an_adapter_that_returns_its_input_the_distillation_is_the_entropy(
    tmp_path: Path,
) -> None:
    """Also with a projection, whose result is divided by its norm."""
    text, _, _ = random_texts(tmp_path)
    x = torch.from_numpy(unit(np.random.default_rng(3).normal(size=(5, 6))))[None]
    guide, guided = (100 * text(v) for v in (x, Adapters([0], 6, alpha=0.0).double()(x)))
    labels = torch.zeros(1, 5, dtype=torch.long)
    terms = adapter_loss(torch.zeros(1, 5, 4).double(), guide, labels, 5.0, guided)
    entropy = torch.distributions.Categorical(logits=guide / 5).entropy()
    assert torch.allclose(terms["distillation"], entropy)


def test_the_training_follows_the_loss_with_texts(tmp_path: Path) -> None:
    """The first step of alpha against a difference quotient of the loss in float64."""
    text, text_CT, projection = random_texts(tmp_path)
    shots, scale, T = 2, 10.0, 5.0
    x = unit(np.random.default_rng(4).normal(size=(4 * shots, 6)))
    y = np.repeat(np.arange(4), shots)
    start = Adapters([0], 6)
    into, out = (p.detach().numpy()[0].astype(np.float64) for p in (start.into, start.out))

    def loss(alpha: float) -> float:
        """Mean over the images of both terms of the loss."""
        a = unit(alpha * np.maximum(x @ into, 0) @ out + (1 - alpha) * x)
        total = 0.0
        for i in range(len(x)):
            peers = [[j for j in np.flatnonzero(y == c) if j != i] for c in range(4)]
            image = scale * np.array([a[i] @ a[o].mean(0) for o in peers])
            z, za = (scale * unit((v[i] @ projection)[None])[0] @ unit(text_CT).T for v in (x, a))
            total -= np.log(softmax(image)[y[i]]) + softmax(z / T) @ np.log(softmax(za / T))
        return float(total / len(x))

    slope = (loss(0.5 + 1e-5) - loss(0.5 - 1e-5)) / 2e-5
    rate = 0.1
    expected = 0.5 - rate * 1.9 * (slope + 5e-4 * 0.5)  # Nesterov's first step, weight decay
    x_END, member = torch.from_numpy(x).float()[None], torch.from_numpy(np.eye(4)[y]).float()[None]
    trained = train_adapters(x_END, member, [0], Recipe(rate, 1, scale, T), [text])
    assert trained.alpha.item() == pytest.approx(expected, abs=2e-5)
    assert abs(trained.alpha.item() - 0.5) > 1e-3
    untaught = train_adapters(x_END, member, [0], Recipe(rate, 1, scale, T))
    assert abs(untaught.alpha.item() - expected) > 1e-4


def separable(seed: int, n: int = 80) -> Features:
    """Classes that differ in the first 4 of 12 dimensions; the others are larger noise."""
    rng, y = np.random.default_rng(seed), np.repeat(np.arange(4), n // 4)
    x = np.hstack([np.eye(4)[y] + rng.normal(0, 0.1, (n, 4)), rng.normal(0, 1.0, (n, 8))])
    return Features(x.astype(np.float32), x.astype(np.float32), y, NAMES)


def run_stage(root: Path, text: str) -> dict[str, Any]:
    """The outputs of the stage `probe` on stored teacher features, with values by name."""
    folder = root / "features"
    folder.mkdir(exist_ok=True)
    for seed, split in enumerate(("train", "val", "test")):
        f = separable(seed)
        extract._save(folder, split, f.pre_activation, f.post_activation, f.labels)
    write_json(
        folder / extract.LISTING, {"classes": NAMES, "splits": {"train": 80, "val": 80, "test": 80}}
    )
    config = {**resolve("probe", "sgva_clip_text"), "text": text, **SHORT}
    outputs = stage.run({"probe": config}, {"teacher_features": folder}, root, lambda *_: None)
    return {**outputs, "values": {v["name"]: v["value"] for v in outputs["values"]}}


def test_texts_that_separate_the_classes_give_the_score_with_0_and_1_images(tmp_path: Path) -> None:
    """The order of the names in the file does not matter, but their texts do."""
    order = [3, 1, 0, 2]
    names, text = [NAMES[k] for k in order], np.eye(4, 12)[order]
    right = run_stage(tmp_path, write_texts(tmp_path / "right.npz", text, [*names]))
    values = right["values"]
    assert list(values) == [
        "top1, 0 per class",
        "top1, 1 per class",
        "top1, 1 per class, no text",
    ]
    assert values["top1, 0 per class"] > 0.98
    assert values["top1, 1 per class"] > 0.95
    assert values["top1, 1 per class, no text"] < values["top1, 1 per class"] - 0.1
    assert "not above chance" not in right["notes"][0]
    wrong = run_stage(tmp_path, write_texts(tmp_path / "wrong.npz", text, names[1:] + names[:1]))
    assert wrong["values"]["top1, 0 per class"] < 0.02
    assert wrong["values"]["top1, 1 per class"] < 0.6
    assert "not above chance" in wrong["notes"][0]


def test_the_weight_is_chosen_on_val_and_runs_are_equal(tmp_path: Path) -> None:
    """Texts without meaning get the smallest weight, texts with meaning a large one."""
    splits = {s: separable(i) for i, s in enumerate(("train", "val", "test"))}
    noise = np.random.default_rng(0).normal(size=(4, 12))
    file = write_texts(tmp_path / "t.npz", noise)
    probe = SgvaClipText(text=file, fusion=[0.9, 0.0], **{**SHORT, "shots": [16]})
    measured = probe.measure(Inputs(teacher_splits=splits))
    assert "weight 0.9 of the adapted" in measured.notes[1]
    assert measured == probe.measure(Inputs(teacher_splits=splits))
    right = SgvaClipText(
        text=write_texts(tmp_path / "t.npz", np.eye(4, 12)), fusion=[0, 1], **SHORT
    )
    result = right.measure(Inputs(teacher_splits=splits))
    assert "weight 0 of the adapted" in result.notes[1]
    fused, alone = (result.values[f"top1, {k} per class"].value for k in (1, 0))
    assert fused == pytest.approx(alone)


def test_the_projection_of_a_timm_clip_gives_the_embedding_of_that_network(tmp_path: Path) -> None:
    """A small CLIP vision tower with random weights: its head is the projection of CLIP.

    The texts are the mean embeddings of images of each class.
    """
    size = dict(img_size=32, embed_dim=48, depth=2, num_heads=2, num_classes=16)
    teacher = Timm("clip", "vit_base_patch16_clip_224", 32, weights="random", args=size)
    rng = np.random.default_rng(0)
    splits, embeddings = {}, {}
    for split in ("train", "val", "test"):
        y = np.repeat(np.arange(4), 6)
        images = COLOURS[y][:, :, None, None] + rng.integers(-40, 40, (24, 3, 32, 32))
        out = teacher(torch.from_numpy(images.clip(0, 255).astype(np.uint8)))
        assert out.logits is not None
        embeddings[split] = out.logits.double().numpy()
        splits[split] = Features(out.pooled.numpy(), out.pooled.numpy(), y, NAMES)
    text = unit(embeddings["train"]).reshape(4, 6, 16).mean(1)
    head: Any = teacher.net.get_submodule("head")
    projection = head.weight.detach().numpy().T
    file = write_texts(tmp_path / "t.npz", text, projection=projection)
    classifier = TextClassifier(read_text_embeddings(file), list(NAMES), teacher.width)
    x = torch.from_numpy(unit(splits["test"].post_activation))[None]
    expected = unit(embeddings["test"]) @ unit(text).T
    np.testing.assert_allclose(classifier(x)[0].numpy(), expected, atol=1e-5)
    values = SgvaClipText(text=file, **SHORT).measure(Inputs(teacher_splits=splits)).values
    assert values["top1, 0 per class"].value > 0.9
    swapped = write_texts(tmp_path / "s.npz", text, NAMES[1:] + NAMES[:1], projection=projection)
    values = SgvaClipText(text=swapped, **SHORT).measure(Inputs(teacher_splits=splits)).values
    assert values["top1, 0 per class"].value < 0.1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"classes": ["a", "a"], "text": np.eye(2)}, "lists a class twice: 'a'"),
        ({"classes": ["a", "b"]}, "no array `text`"),
        ({"text": np.eye(2)}, "no array `classes`"),
        ({"names": ["a", "b"], "text": np.eye(2)}, "contains 'names'"),
        ({"classes": [0, 1], "text": np.eye(2)}, "array `classes`.*type int64"),
        ({"classes": ["a"], "text": np.eye(2)}, "1 rows, one for each"),
        ({"classes": ["a", "b"], "text": np.eye(2, dtype=int)}, "floats of shape"),
        ({"classes": ["a", "b"], "text": np.diag([1.0, 0])}, r"1 classes .* zero.*'b'"),
        ({"classes": ["a", "b"], "text": np.diag([np.nan, 1])}, "zero, NaN or infinite"),
        ({"classes": ["a", "b"], "text": np.array([[1.0, 2], [2, 4]])}, "all 2 classes .* equal"),
        ({"classes": ["a", "b"], "text": np.eye(2), "projection": np.eye(3)}, "`projection`"),
        ({"classes": np.array(["a", "b"], dtype=object), "text": np.eye(2)}, "cannot be read"),
    ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(KdepError, match=message):
        read_text_embeddings(tmp_path / "t.npz")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.eye(2))
    torch.save({"cat": torch.ones(2)}, tmp_path / "torch.npz")
    (tmp_path / "empty.npz").touch()
    whole = Path(write_texts(tmp_path / "whole.npz", np.eye(4))).read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    # Two fields of the first entry of the zip directory.
    for name, position in (("encrypted.npz", 8), ("method.npz", 10)):
        damaged = bytearray(whole)
        damaged[whole.index(b"PK\x01\x02") + position] |= 0x41
        (tmp_path / name).write_bytes(damaged)
    names = ("one.npy", "torch.npz", "empty.npz", "short.npz", "encrypted.npz", "method.npz")
    for name in (*names, "absent.npz", ""):
        with pytest.raises(KdepError):
            read_text_embeddings(tmp_path / name)


def test_a_missing_class_and_another_width_are_refused(tmp_path: Path) -> None:
    embeddings = read_text_embeddings(write_texts(tmp_path / "t.npz", np.eye(4, 5)))
    with pytest.raises(KdepError, match=r"lacks .* of 1 of 2 classes \('elk'\); it has 'ant'"):
        TextClassifier(embeddings, ["ant", "elk"], 5)
    with pytest.raises(KdepError, match="5 dimensions, but the feature of the teacher has 7"):
        TextClassifier(embeddings, ["ant"], 7)
    file = write_texts(tmp_path / "p.npz", np.eye(4, 5), projection=np.ones((5, 5)))
    with pytest.raises(KdepError, match=r"shape \(5, 5\).* has 7 dimensions"):
        TextClassifier(read_text_embeddings(file), ["ant"], 7)
