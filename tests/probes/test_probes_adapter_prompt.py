"""SgVA-CLIP with a trained prompt: closed forms, frozen weights, folders that are refused.

The CLIP is small, with random weights; its tokenizer splits words into letters.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdep_bench.errors import KdepError
from kdep_bench.probes.adapter import Adapters, Recipe, adapter_loss, drawn_images, train_adapters
from kdep_bench.probes.adapter_prompt import (
    SgvaClipPrompt,
    TextTower,
    initial_context,
    train_prompts,
)
from kdep_bench.probes.base import Features, Inputs, unit
from kdep_bench.probes.clip_folder import read_clip_folder
from kdep_bench.teachers.huggingface import transformers

NAMES = ("ant", "sea_bee", "cat", "dog")
RECIPE = Recipe(0.05, 20, 10.0, 5.0)
SHORT: dict[str, Any] = {"shots": [2], "draws": 2, "context": 3, "steps": 8, "fusion": [0, 0.5, 1]}
WIDTH = 24  # of the image feature


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small CLIP."""
    library: Any = pytest.importorskip(
        "transformers", reason="the optional extra `hf` is not installed"
    )
    path = tmp_path_factory.mktemp("clip")
    letters = [c + end for end in ("", "</w>") for c in string.ascii_lowercase + "."]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = library.CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[])
    size = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
    text = dict(
        size,
        vocab_size=len(tokens),
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    net = library.CLIPModel(
        library.CLIPConfig(
            text_config=text,
            vision_config=dict(size, image_size=16, patch_size=8),
            projection_dim=16,
        )
    )
    with torch.no_grad():  # large enough that the texts of the classes differ clearly
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    net.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def plain_features(
    folder: Path, texts: list[str], dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Unit embeddings of the texts, by transformers alone."""
    net: Any = transformers().CLIPModel.from_pretrained(folder, local_files_only=True).to(dtype)
    tokenizer = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        out = net.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
    return unit(out.pooler_output.double().numpy())


def checksum(tower: TextTower) -> str:
    """SHA-256 of the weights of the tower and of both projections."""
    tensors = [*tower.tower.state_dict().values(), *tower.text_projection.state_dict().values()]
    joined = b"".join(t.numpy().tobytes() for t in [*tensors, tower.projection_DT.contiguous()])
    return hashlib.sha256(joined).hexdigest()


def splits(tower: TextTower, names: tuple[str, ...] = NAMES) -> dict[str, Features]:
    """Images, each similar to the text "a photo of a NAME." of its class only."""
    text = plain_features(
        tower.folder.path, [f"a photo of a {n.replace('_', ' ')}." for n in NAMES]
    )
    # Directions with a product with one text only; the projection, 24 to 16, can be inverted.
    centres = unit(np.linalg.pinv(text).T) @ np.linalg.pinv(tower.projection_DT.double().numpy())
    result = {}
    for seed, split in enumerate(("train", "val", "test")):
        y = np.repeat(np.arange(4), 10)
        x = unit(centres)[y] + np.random.default_rng(seed).normal(0, 0.02, (40, WIDTH))
        result[split] = Features(x.astype(np.float32), x.astype(np.float32), y, names)
    return result


def test_without_training_a_prompt_of_words_has_the_embedding_of_transformers(
    folder: Path,
) -> None:
    """Names have different numbers of tokens, one has an underscore."""
    tower = TextTower(read_clip_folder(folder))
    start = initial_context(tower, [0], 3, "a photo of a")[0]
    assert len(start) == 9  # letters
    encoded = tower.encode(start, tower.prompts(NAMES, len(start))).numpy()
    texts = [f"a photo of a {n.replace('_', ' ')}." for n in NAMES]
    expected = plain_features(folder, texts)
    np.testing.assert_allclose(encoded, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    random = initial_context(tower, [0, 1], 3, None)
    assert random.shape == (2, 3, 24)
    assert 0.01 < random.std() < 0.03
    assert not torch.equal(random[0], random[1])


def test_the_first_step_follows_the_complete_loss_in_float64(folder: Path) -> None:
    """Prompt and adapter against difference quotients of the three terms of the loss.

    The reference changes the token embedding of a letter that only the context has, and encodes
    plain sentences with transformers.
    """
    names, words = ("ant", "bee", "cat", "dog"), "z"
    tower = TextTower(read_clip_folder(folder))
    scale, T, rate = 10.0, 5.0, 0.01
    x = unit(np.random.default_rng(4).normal(size=(8, WIDTH)))
    y = np.repeat(np.arange(4), 2)
    net: Any = transformers().CLIPModel.from_pretrained(folder, local_files_only=True).double()
    tokens = tower.tokenizer([f"{words} {n}." for n in names], padding=True, return_tensors="pt")
    row = net.text_model.embeddings.token_embedding.weight[tower.token_ids(words)[0]]
    P = net.visual_projection.weight.detach().numpy().T
    adapters = Adapters([0], WIDTH)
    into, out = (p.detach().double().numpy()[0] for p in (adapters.into, adapters.out))

    def log_softmax(z: np.ndarray) -> np.ndarray:
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    @torch.no_grad()
    def loss(alpha: float, shift: float) -> tuple[float, float]:
        """(adapter, prompt): with this alpha, and with a shifted first number of the context."""
        row[0] += shift
        text = unit(net.get_text_features(**tokens).pooler_output.numpy())
        row[0] -= shift
        a = unit(alpha * np.maximum(x @ into, 0) @ out + (1 - alpha) * x)
        z, za = (scale * unit(v @ P) @ text.T for v in (x, a))
        image = np.empty((8, 4))
        for i in range(8):
            peers = [[j for j in np.flatnonzero(y == c) if j != i] for c in range(4)]
            image[i] = scale * np.array([a[i] @ a[o].mean(0) for o in peers])
        labels = np.arange(8), y
        classes = -log_softmax(image)[labels].mean()
        distillation = -(np.exp(log_softmax(z / T)) * log_softmax(za / T)).sum(1).mean()
        return classes + distillation, -log_softmax(z)[labels].mean()

    h = 1e-5
    slope_alpha = (loss(0.5 + h, 0)[0] - loss(0.5 - h, 0)[0]) / (2 * h)
    slope_context = (loss(0.5, h)[1] - loss(0.5, -h)[1]) / (2 * h)
    start = initial_context(tower, [0], 1, words)
    x_END, member = torch.from_numpy(x).float()[None], torch.from_numpy(np.eye(4)[y]).float()[None]
    recipe = Recipe(rate, 1, scale, T)
    trained = train_prompts(tower, names, start, x_END, member.argmax(2), recipe)
    # Nesterov's first step is 1.9 times the gradient, with weight decay.
    first = start[0, 0, 0].item()
    moved = trained.context_ELW[0, 0, 0].item() - first
    assert moved == pytest.approx(-rate * 1.9 * (slope_context + 5e-4 * first), rel=1e-3, abs=1e-6)
    assert abs(moved) > 1e-5
    adapted = train_adapters(x_END, member, [0], recipe, trained.during)
    expected = 0.5 - rate * 1.9 * (slope_alpha + 5e-4 * 0.5)
    assert adapted.alpha.item() == pytest.approx(expected, abs=2e-6)


def test_with_an_adapter_that_returns_its_input_the_distillation_is_the_entropy(
    folder: Path,
) -> None:
    tower = TextTower(read_clip_folder(folder))
    start = initial_context(tower, [0], 3, None)
    x = F.normalize(torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(0)), dim=2)
    labels = torch.zeros(1, 5, dtype=torch.long)
    text = train_prompts(tower, NAMES, start, x, labels, RECIPE._replace(steps=1)).during[0]
    guide, guided = (10 * text(v) for v in (x, Adapters([0], WIDTH, alpha=0.0)(x)))
    terms = adapter_loss(torch.zeros(1, 5, 4), guide, labels, 5.0, guided)
    entropy = torch.distributions.Categorical(logits=guide / 5).entropy()
    assert torch.allclose(terms["distillation"], entropy, atol=1e-5)


def test_training_raises_the_accuracy_and_changes_only_the_prompt(folder: Path) -> None:
    tower = TextTower(read_clip_folder(folder))
    before = checksum(tower)
    train = splits(tower)["train"]
    x_END, member = drawn_images(unit(train.post_activation), train.labels, 4, 2)
    labels = member.argmax(2)
    start = initial_context(tower, range(2), 4, None)
    kept = start.clone()

    def accuracy(text: Any) -> float:
        return (text(x_END).argmax(2) == labels).float().mean().item()

    trained = train_prompts(tower, NAMES, start, x_END, labels, RECIPE)
    assert accuracy(trained.final) > accuracy(trained.during[0]) + 0.1
    assert torch.equal(start, kept)
    assert (trained.context_ELW - start).abs().amax((1, 2)).min() > 1e-3
    assert checksum(tower) == before
    assert not any(p.requires_grad or p.grad is not None for p in tower.tower.parameters())
    again = train_prompts(tower, NAMES, start, x_END, labels, RECIPE)
    assert torch.equal(again.context_ELW, trained.context_ELW)


def test_the_probe_needs_the_names_of_the_classes(folder: Path) -> None:
    """Texts that separate the classes give the score; with permuted names it is lost."""
    tower = TextTower(read_clip_folder(folder))
    probe = SgvaClipPrompt(text_model=str(folder), words="a photo of a", **SHORT)
    right = probe.measure(Inputs(teacher_splits=splits(tower)))
    assert list(right.values) == [
        "top1, 0 per class",
        "top1, 2 per class",
        "top1, 2 per class, no text",
        "top1, 2 per class, text alone",
    ]
    assert right.values["top1, 0 per class"].value > 0.9
    assert right.values["top1, 2 per class"].value > 0.9
    assert right == probe.measure(Inputs(teacher_splits=splits(tower)))
    wrong = probe.measure(Inputs(teacher_splits=splits(tower, NAMES[1:] + NAMES[:1])))
    assert wrong.values["top1, 0 per class"].value < 0.1
    assert "not above chance: the folder `text_model`" in wrong.notes[0]


def copied(folder: Path, tmp_path: Path, *without: str) -> Path:
    """A copy of the folder without some files."""
    return Path(shutil.copytree(folder, tmp_path / "copy", ignore=lambda *_: list(without)))


def test_folders_that_are_not_a_clip_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KdepError, match="no text encoder"):
        read_clip_folder(None)
    with pytest.raises(KdepError, match=r"absent does not exist.*nothing is downloaded"):
        read_clip_folder(tmp_path / "absent")
    copy = copied(folder, tmp_path, "tokenizer.json", "vocab.json")
    with pytest.raises(KdepError, match=r"no tokenizer.*tokenizer\.json or vocab\.json and"):
        read_clip_folder(copy)
    shutil.copy(folder / "tokenizer.json", copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(KdepError, match="model type 'bert'"):
        read_clip_folder(copy)
    (copy / "config.json").write_text(json.dumps(config))
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KdepError, match="transformers cannot read the CLIP"):
        TextTower(read_clip_folder(copy))
    for damaged in (whole.replace(b"visual_projection", b"visual_projectiom"), b"", b"\xff" * 99):
        (copy / "model.safetensors").write_bytes(damaged)
        with pytest.raises(KdepError, match=r"no matrix visual_projection|not a valid"):
            read_clip_folder(copy)
    (copy / "model.safetensors").write_bytes(whole.replace(b"text_projection", b"text_projectiom"))
    with pytest.raises(KdepError, match=r"lack 1 tensors, such as text_projection"):
        TextTower(read_clip_folder(copy))


def test_a_tokenizer_of_another_model_and_names_without_tokens_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    tower = TextTower(read_clip_folder(folder))
    with pytest.raises(KdepError, match=r"no token for a part of '7\.'"):
        tower.prompts(["7"], 3)
    with pytest.raises(KdepError, match=r"class 'ant' has at least 23 tokens.*24 positions"):
        tower.prompts(["ant"], 19)
    assert tower.prompts(["ant"], 18).shape == (1, 24)
    with pytest.raises(KdepError, match=r"reads features of 24 dimensions.*has 7"):
        tower.folder.check_width(7)
    copy = copied(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(KdepError, match="does not fit the text tower"):
        TextTower(read_clip_folder(copy))
    config["text_config"]["eos_token_id"] = 2  # as in the configs of OpenAI
    (copy / "config.json").write_text(json.dumps(config))
    legacy = TextTower(read_clip_folder(copy))
    start = initial_context(tower, [0], 3, None)[0]
    prompts = tower.prompts(NAMES, 3)
    assert torch.equal(legacy.encode(start, prompts), tower.encode(start, prompts))


def write_folder(path: Path) -> Path:
    """A folder with all files that planning reads; its weights have a header only."""
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "clip"}')
    (path / "tokenizer.json").write_text("{}")
    header = b'{"visual_projection.weight": {"shape": [512, 768]}}'
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_without_transformers_the_error_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(KdepError, match="pip install 'transformers"):
        read_clip_folder(write_folder(tmp_path / "clip"))
