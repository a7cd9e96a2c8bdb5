"""Domain adaptation: the closed forms of SSDA, and real detectors trained for another domain.

SSDA trains a detector on source images with boxes and target images without. Source images also
get the style of target images by FDA (Fourier domain adaptation: the amplitudes of low frequencies
are exchanged). A teacher, the moving average of the detector, gives target images pseudo boxes. The
formulas are in the docstring of kdep_bench/transfer/methods/ssda.py.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from kdep_bench.data.domains import seed_from_name, to_domain
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import MODEL, TransferContext
from kdep_bench.transfer.methods.ssda import SSDA, exchange_amplitude
from tests.transfer.conftest import config
from tests.transfer.test_transfer_methods import error_of, run, untimed

SSDA_TYPE = "kdep_bench.transfer.methods.ssda.SSDA"
MEAN, STD = 120.0, 60.0  # of the normalisation of pixel values


def random_pixels(*shape: int, seed: int = 0) -> Tensor:
    """Random pixel values that depend only on the seed."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double() * 255


# ---- style ----


def reference_style(image: np.ndarray, style: np.ndarray, size: float) -> np.ndarray:
    """FDA by its definition: the amplitudes of low frequencies are those of `style`.

    Args:
        image, style: [C, H, W].
        size: largest exchanged frequency, as a fraction of the shorter side.
    """
    of_image, of_style = (np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1)) for x in (image, style))
    height, width = image.shape[-2:]
    # After the shift, frequency 0 is in the centre (y, x), and low frequencies are a square there.
    largest, y, x = int(size * min(height, width)), height // 2, width // 2
    rows = np.s_[..., y - largest : y + largest + 1, :]
    columns = np.s_[..., x - largest : x + largest + 1]
    amplitude = np.abs(of_image)
    amplitude[rows][columns] = np.abs(of_style)[rows][columns]
    mixed = amplitude * np.exp(1j * np.angle(of_image))
    return np.real(np.fft.ifft2(np.fft.ifftshift(mixed, axes=(-2, -1))))


@pytest.mark.parametrize("shape", [(24, 32), (15, 22), (31, 17)])
@pytest.mark.parametrize("size", [0.0, 0.1, 0.3])
def test_the_style_is_that_of_fourier_domain_adaptation(shape, size):
    image, style = random_pixels(3, *shape), random_pixels(3, *shape, seed=1)
    expected = reference_style(image.numpy(), style.numpy(), size)
    torch.testing.assert_close(exchange_amplitude(image, style, size), torch.from_numpy(expected))
    torch.testing.assert_close(exchange_amplitude(image, image, size), image)


def test_a_restyled_image_has_the_mean_of_the_other_domain_and_its_padding_is_unchanged():
    """With size 0 only the mean is exchanged, in pixel values.

    Amplitudes have no sign, so with normalised values a negative mean would become a positive one.
    """
    method, _ = attach_ssda(size=0.0)
    dark, bright = torch.full((1, 3, 8, 8), 40.0), torch.full((1, 3, 6, 8), 200.0)
    dark[..., ::2, :] += 20  # mean 50
    inputs = (torch.nn.functional.pad(dark, (0, 4)) - MEAN) / STD
    out = method.restyle(inputs, [(8, 8)], (bright - MEAN) / STD, [(6, 8)])
    torch.testing.assert_close(out[..., 8:], inputs[..., 8:])
    pixels = out[..., :8] * STD + MEAN
    torch.testing.assert_close(pixels, dark + 150)  # from mean 50 to 200
    back = method.restyle((bright - MEAN) / STD, [(6, 8)], inputs, [(8, 8)]) * STD + MEAN
    torch.testing.assert_close(back, torch.full_like(back, 50.0))


# ---- losses ----


class Preprocessor(nn.Module):
    """Normalises a batch, with the interface of mmdet's DetDataPreprocessor."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), MEAN))
        self.register_buffer("std", torch.full((3, 1, 1), STD))

    def forward(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        """The batch with normalised inputs [B, 3, H, W]."""
        assert training
        inputs = (torch.stack(batch["inputs"]) - self.mean) / self.std
        return {"inputs": inputs, "data_samples": batch["data_samples"]}


class Detector(nn.Module):
    """A detector whose loss is scale * mean(images) + 0.1 * number of boxes + 2, with scale 1.5.

    It predicts the boxes `predicted`, one InstanceData per image, whatever the image. The batches
    that it predicts are added to `read`.
    """

    def __init__(self, predicted: list[InstanceData]) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 1, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.norm = nn.BatchNorm1d(2)
        self.data_preprocessor = Preprocessor()
        self.predicted = predicted
        self.read: list[Tensor] = []

    def loss(self, inputs: Tensor, samples: list[Any]) -> dict[str, Any]:
        """The loss as two terms, and an accuracy, which is no loss."""
        boxes = sum(len(sample.gt_instances) for sample in samples)
        loss_cls, loss_box = self.scale * inputs.mean(), torch.tensor(0.1 * boxes + 2)
        return {"loss_cls": loss_cls, "loss_box": [loss_box], "acc": torch.tensor(99.0)}

    def predict(self, inputs: Tensor, samples: list[Any], rescale: bool) -> list[Any]:
        """The samples with the predicted boxes."""
        assert not rescale
        assert not self.training
        assert not torch.is_grad_enabled()
        self.read.append(inputs)
        for sample, predicted in zip(samples, self.predicted, strict=True):
            sample.pred_instances = predicted
        return samples

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The sum of the losses, as mmengine computes it."""
        values = [sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k]
        return cast(Tensor, sum(values)), {}


def instances(*rows: tuple[float, float, float, float, float, int]) -> InstanceData:
    """Detections from rows (x1, y1, x2, y2, score, class)."""
    table = torch.tensor(rows).view(-1, 6)
    return InstanceData(bboxes=table[:, :4], scores=table[:, 4], labels=table[:, 5].long())


def sample(boxes: int, size: tuple[int, int] = (8, 8)) -> Any:
    """The data sample of an image of this size with this number of true boxes."""
    element = BaseDataElement(metainfo=dict(img_shape=size))
    element.gt_instances = InstanceData(bboxes=torch.zeros(boxes, 4))
    return element


CONFIDENT = (0.0, 0.0, 4.0, 4.0, 0.9, 1)  # a detection above the score threshold of 0.5
NO_DETECTIONS = [instances(), instances()]  # of two images


def attach_ssda(
    predicted: list[InstanceData] | None = None, **options: Any
) -> tuple[SSDA, Detector]:
    """SSDA attached to a Detector, and the detector.

    A batch of target images has two images of the constant pixel values 200 and 220.
    """
    method, model = SSDA(**options), Detector(NO_DETECTIONS if predicted is None else predicted)
    method.attach(model, None)
    images = [torch.full((3, 8, 8), value) for value in (200.0, 220.0)]
    batch = {"inputs": images, "data_samples": [sample(0), sample(0)]}
    method.target_batches = iter([batch] * 9)  # more than any test reads
    return method, model


def losses_of(method: SSDA, model: Detector) -> tuple[dict[str, Tensor], Tensor]:
    """(SSDA's terms, the task's loss) for source images of values 50 and 90 with three boxes."""
    values = torch.tensor([50.0, 90.0]).view(2, 1, 1, 1)
    inputs = ((values - MEAN) / STD).expand(2, 3, 8, 8)
    samples = [sample(1), sample(2)]
    task_losses = model.loss(inputs, samples)
    ctx = TransferContext(inputs, samples, {}, task_losses=task_losses)
    return method.losses(ctx), model.parse_losses(task_losses)[0]


def test_the_terms_of_ssda_have_the_values_of_the_formula():
    """A constant image in the other style has the value of the other image.

    The source images of 50 and 90 (mean 70) become 200 and 220 (mean 210), and conversely.
    """
    predicted = [instances(CONFIDENT, (4.0, 4.0, 8.0, 8.0, 0.8, 0)), instances()]
    weights = dict(styled=0.7, distillation=0.3, consistency=5.0)
    method, model = attach_ssda(predicted, **weights)
    terms, task_loss = losses_of(method, model)
    source = 1.5 * (70 - MEAN) / STD + 0.3 + 2  # three boxes
    styled = 1.5 * (210 - MEAN) / STD + 0.3 + 2
    distilled = 1.5 * (200 - MEAN) / STD + 0.2 + 2  # only the target image with (two) pseudo boxes
    assert task_loss.item() == pytest.approx(source, rel=1e-5)
    expected = {
        "styled": 0.7 * styled,
        "consistency": 5 * (source - styled) ** 2,
        "distillation": 0.3 * distilled,
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-4)
    # The teacher gets the target images in the style of the source, with the values 50 and 90.
    (read,) = cast(Any, method.teacher).read
    torch.testing.assert_close((read * STD + MEAN).mean((1, 2, 3)), torch.tensor([50.0, 90.0]))
    # Counted: two styled images, two images of the teacher, one target image with boxes.
    assert method.extra_images == 5


def test_every_term_gives_the_detector_a_gradient_and_none_gives_the_teacher_one():
    method, model = attach_ssda([instances(CONFIDENT), instances(CONFIDENT)])
    terms, task_loss = losses_of(method, model)
    for term in terms.values():
        (gradient,) = torch.autograd.grad(term, model.scale, retain_graph=True)
        assert gradient.item() != 0
    (task_loss + sum(terms.values())).backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    method.train()
    assert method.training
    assert not method.teacher.training


def test_without_a_pseudo_box_the_distillation_is_0_and_no_box_is_added():
    below_threshold = instances((0.0, 0.0, 4.0, 4.0, 0.49, 1))
    method, model = attach_ssda([below_threshold, instances()])
    terms, _ = losses_of(method, model)
    assert terms["distillation"].item() == 0
    assert method.extra_images == 4  # two styled images and two of the teacher


def test_pseudo_boxes_are_limited_by_score_by_overlap_in_a_class_and_in_number():
    rows = [
        (0.0, 0.0, 4.0, 4.0, 0.6, 1),  # IoU 0.75 with the next, which has a higher score: removed
        (0.0, 0.0, 4.0, 3.0, 0.9, 1),  # kept
        (0.0, 0.0, 4.0, 4.0, 0.7, 2),  # of another class: kept
        (5.0, 5.0, 8.0, 8.0, 0.5, 1),  # exactly at the threshold: kept
        (5.0, 0.0, 8.0, 3.0, 0.4, 1),  # below the threshold of 0.5: removed
    ]
    method, _ = attach_ssda([instances(*rows), instances()])
    samples = [sample(3), sample(3)]
    inputs = torch.zeros(2, 3, 8, 8)
    first, second = method.pseudo_labelled(inputs, samples)
    # In descending order of scores.
    assert first.gt_instances.labels.tolist() == [1, 2, 1]
    assert first.gt_instances.bboxes[:, 3].tolist() == [3.0, 4.0, 8.0]
    assert len(second.gt_instances) == 0
    assert "pred_instances" not in first
    assert first.ignored_instances.bboxes.shape == (0, 4)
    assert [len(s.gt_instances) for s in samples] == [3, 3]  # the loader's samples are unchanged
    method.boxes = 2  # largest number per image
    assert len(method.pseudo_labelled(inputs, samples)[0].gt_instances) == 2


def test_the_teacher_is_the_moving_average_of_parameters_and_running_statistics():
    method, model = attach_ssda(decay=0.9)
    initial = copy.deepcopy(method.teacher.state_dict())
    with torch.no_grad():
        model.scale.add_(1)
        norm: Any = model.norm
        norm.running_mean += 2
        norm.num_batches_tracked += 7
    # As in a task, where the method is a module of the model.
    model.transfer_method = method
    method.average(method.decay)
    state = method.teacher.state_dict()
    assert float(state["scale"]) == pytest.approx(0.9 * float(initial["scale"]) + 0.1 * 2.5)
    assert state["norm.running_mean"].tolist() == pytest.approx([0.2, 0.2])  # 0.9 * 0 + 0.1 * 2
    assert int(state["norm.num_batches_tracked"]) == 7  # a counter is copied
    method.average(0.0)
    assert float(method.teacher.state_dict()["scale"]) == 2.5


def test_with_all_weights_zero_nothing_is_read_or_added():
    method, model = attach_ssda(styled=0, distillation=0, consistency=0)
    method.target_batches = iter(())
    assert losses_of(method, model)[0] == {}
    assert method.hooks() == []
    assert method.extra_images == 0


# ---- whole stages ----


def fog_task(scored_on: str = "target", **recipe: Any) -> dict[str, Any]:
    """The task smoke_det_fog with three iterations.

    `scored_on`: the scored domain, "target" (images in fog) or "source" (clear images).
    """
    task = config("tasks", "smoke_det_fog")
    task["recipe"].update({"iters": 3, "warmup": 1, "scored_on": scored_on, **recipe})
    return task


def ssda(**options: Any) -> dict[str, Any]:
    """Entries of a stage's spec. The score threshold is 0, so that there are pseudo boxes."""
    return {"transfer": {"type": SSDA_TYPE, "score": 0.0, **options}, "keep_model": True}


NO_WEIGHTS = dict(styled=0.0, distillation=0.0, consistency=0.0)


@pytest.fixture(scope="module")
def plain(data, exported, student, tmp_path_factory, in_subprocess) -> dict[str, Any]:
    """Outputs of a detector trained without SSDA, {scored domain: outputs}, and their "folder"."""
    out = tmp_path_factory.mktemp("plain")
    return {
        scored_on: in_subprocess(
            run,
            student,
            data,
            exported,
            out / scored_on,
            {"keep_model": True},
            None,
            fog_task(scored_on),
        )
        for scored_on in ("target", "source")
    } | {"folder": out}


@pytest.mark.e2e
def test_target_and_source_are_two_scores_of_the_same_detector(plain):
    """The same training and weights, but other detections, because the images are others."""
    target, source = plain["target"], plain["source"]
    assert target["curves"] == source["curves"]
    assert target["model_checksum"] == source["model_checksum"]
    assert target["samples"] != source["samples"]


@pytest.mark.e2e
def test_without_weights_ssda_is_the_task_s_own_training(
    data, exported, student, plain, tmp_path, in_subprocess
):
    args = (student, data, exported, tmp_path / "a", ssda(**NO_WEIGHTS), None, fog_task())
    outputs = in_subprocess(run, *args)
    cost, curves = outputs.pop("transfer"), outputs["curves"]
    assert untimed(outputs) == untimed(plain["target"])
    assert curves == plain["target"]["curves"]
    assert cost["extra_forwards"] == 0


@pytest.mark.e2e
def test_ssda_trains_a_detector_and_saves_only_the_task_s_model(
    data, exported, student, plain, tmp_path, in_subprocess
):
    args = (student, data, exported)
    outputs = in_subprocess(run, *args, tmp_path / "a", ssda(), None, fog_task())
    json.dumps(outputs, allow_nan=False)
    saved, saved_plain = (
        read_tensors(folder / MODEL) for folder in (tmp_path / "a", plain["folder"] / "target")
    )
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in saved_plain.items()}
    curves = {k: dict(v) for k, v in outputs["curves"].items()}
    terms = {k.removeprefix("transfer.loss_"): v for k, v in curves.items() if k != "loss"}
    assert set(terms) == {"styled", "consistency", "distillation"}
    assert all(terms["distillation"][step] > 0 for step in (1, 2, 3))
    # The task's loss of the first step is that of the plain run.
    first = dict(plain["target"]["curves"]["loss"])[1] + sum(term[1] for term in terms.values())
    assert curves["loss"][1] == pytest.approx(first, rel=1e-5)
    # Three steps: two styled images, two target images, two images of the teacher.
    assert outputs["transfer"]["extra_forwards"] == 3 * 6
    parameters = sum(
        v.numel() for k, v in saved_plain.items() if "running" not in k and "num_" not in k
    )
    assert outputs["transfer"]["extra_parameters"] == parameters
    repeated = in_subprocess(run, *args, tmp_path / "b", ssda(), None, fog_task())
    assert untimed(repeated) == untimed(outputs)


def images_of(task: dict[str, Any], data: Path, student: dict[str, Any]) -> dict[str, Any]:
    """Reads the images of a task by its loaders.

    Returns:
        test: pixels [3, H, W] (BGR) of the first test image.
        path: file of this image.
        boxes: numbers of boxes of the target images.
        counts: numbers of source and of target images.
        source_boxes: number of boxes of the first source image.
    """
    from mmdet.registry import DATASETS
    from mmengine.utils import import_modules_from_strings

    from kdep_bench import openmmlab
    from kdep_bench.registry import build

    openmmlab.setup("mmdet")
    cfg = build(task).build_cfg(data, student, Path("none"), 0, Path("none"))
    import_modules_from_strings(**cfg.custom_imports)
    test = DATASETS.build(cfg.test_dataloader.dataset)
    unlabelled = DATASETS.build(cfg.unlabelled_dataloader.dataset)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    target = [unlabelled[i] for i in range(len(unlabelled))]
    return {
        "test": test[0]["inputs"].numpy(),
        "path": test.get_data_info(0)["img_path"],
        "boxes": [len(x["data_samples"].gt_instances) for x in target],
        "counts": (len(train), len(unlabelled)),
        "source_boxes": len(train[0]["data_samples"].gt_instances),
    }


def test_the_scored_images_are_those_of_the_domain_and_target_images_have_no_boxes(
    data, student, tmp_path, in_subprocess
):
    """A target scene without an object is used, too: to leave it out would use its labels."""
    import shutil

    from PIL import Image

    copied = shutil.copytree(data, tmp_path / "data")
    json_file = copied / "detect/annotations/train.json"
    table = json.loads(json_file.read_text())
    table["annotations"] = [a for a in table["annotations"] if a["image_id"] != 1]
    json_file.write_text(json.dumps(table))
    loaded = {
        scored_on: in_subprocess(images_of, fog_task(scored_on), copied, student)
        for scored_on in ("target", "source")
    }
    path = Path(loaded["source"]["path"])
    clear = np.asarray(Image.open(path).convert("RGB"))
    foggy = to_domain(clear, "fog", seed_from_name(path.name))
    for scored_on, pixels in (("target", foggy), ("source", clear)):
        bgr = loaded[scored_on]["test"].transpose(1, 2, 0).astype(int)
        assert np.abs(bgr[..., ::-1] - pixels).mean() < 3  # not 0, as JPEG decoders differ
        assert set(loaded[scored_on]["boxes"]) == {0}
        assert loaded[scored_on]["counts"] == (7, 8)
        assert loaded[scored_on]["source_boxes"] == 2


@pytest.mark.e2e
def test_ssda_on_a_task_without_a_target_domain_is_refused(
    data, exported, student, tmp_path, in_subprocess
):
    changes = {"transfer": {"type": SSDA_TYPE}}
    task = config("tasks", "smoke_det")
    message = in_subprocess(error_of, student, data, exported, tmp_path, changes, None, task)
    assert "reads target images" in message
    assert "pocket_det_fog" in message
