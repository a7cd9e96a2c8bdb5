"""Transfer methods: the closed forms of their losses, and real transfer stages with them.

TransKD has two losses: hcl (hierarchical context loss) between fused feature maps, and pea between
patch embeddings, the outputs of the layers that change the resolution. Its formula is in the
docstring of kdep_bench/transfer/methods/transkd.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.transfer import stage
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import MODEL, TransferContext, TransferMethod
from kdep_bench.transfer.methods.added_objective import AddedObjective
from kdep_bench.transfer.methods.transkd import (
    CrossSelectiveFusion,
    TransKD,
    embedding_paths,
    hierarchical_context,
)
from tests.transfer.conftest import config, export_random, quiet

LEVELS: tuple[str, ...] = ("s4", "s8", "s16", "s32")
NFD = "kdep_bench.objectives.nfd.NFD"
ADDED = "kdep_bench.transfer.methods.added_objective.AddedObjective"
TRANSKD = "kdep_bench.transfer.methods.transkd.TransKD"
BETAS = {"s4": 0.1, "s8": 0.1, "s16": 0.5, "s32": 1.0}  # weights of pea
TIMED = {"train_s", "eval_s", "images_per_s"}  # measured times in the outputs


def maps(**channels: int) -> dict[str, dict[str, int]]:
    """{level: channels, stride and side of its map} of a network."""
    return {
        level: {"channels": count, "stride": int(level[1:]), "side": 8}
        for level, count in channels.items()
    }


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """A random tensor that depends only on the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def context(
    student: dict[str, Tensor], teacher: dict[str, Tensor], images: Tensor | None = None
) -> TransferContext:
    """The context that a method's losses get, for these maps of student and teacher.

    The images are `images`, or of zeros.
    """
    count = len(next(iter(student.values())))
    images = torch.zeros(count, 3, 8, 8) if images is None else images
    return TransferContext(images, [], student, teacher)


# ---- closed forms ----


def test_hcl_on_1x1_maps_is_the_mean_squared_error():
    student, teacher = random_tensor(3, 5, 1, 1), random_tensor(3, 5, 1, 1, seed=1)
    expected = (student - teacher).square().mean((1, 2, 3))
    torch.testing.assert_close(hierarchical_context(student, teacher), expected)


def test_hcl_of_a_constant_difference_is_its_square_at_every_size():
    for side in (1, 2, 3, 4, 7, 16):
        teacher = random_tensor(2, 3, side, side)
        loss = hierarchical_context(teacher + 3, teacher)
        torch.testing.assert_close(loss, torch.full((2,), 9.0))


def test_hcl_weighs_each_pooled_size_half_as_much_as_the_next_larger_size():
    """The loss is the weighted mean over the map and its pooled maps of sides 4, 2 and 1.

    Every pooled map of a checkerboard of +-1 is 0, so only the full size has a loss, of weight 1.
    An 8x8 map has three pooled sizes: 1 / (1 + 1/2 + 1/4 + 1/8). A 2x2 map has one: 1 / (1 + 1/2).
    """
    for side, expected in ((8, 8 / 15), (2, 2 / 3)):
        i = torch.arange(side)
        board = ((i[:, None] + i) % 2 * 2.0 - 1).expand(1, 4, side, side)
        loss = hierarchical_context(board, torch.zeros_like(board))
        torch.testing.assert_close(loss, torch.tensor([expected]))


def test_fusing_one_level_applies_only_its_two_convolutions():
    fusion = CrossSelectiveFusion([5], [7], 16).eval()
    x = random_tensor(2, 5, 6, 6)
    level = cast(Any, fusion.fusions[0])
    (fused,) = fusion([x])
    torch.testing.assert_close(fused, level.expand(level.reduce(x)))
    assert not [name for name, _ in fusion.named_parameters() if "select" in name]


def test_fusing_two_levels_mixes_the_finer_level_with_the_deeper_level():
    """If the layers that compute the weights are 0, both weights are one half."""
    fusion = CrossSelectiveFusion([5, 6], [7, 8], 16).eval()
    finer, deeper = (cast(Any, f) for f in fusion.fusions)
    for p in finer.select.parameters():
        nn.init.zeros_(p)
    x, deep = random_tensor(2, 5, 6, 6), random_tensor(2, 6, 3, 3, seed=1)
    reduced = deeper.reduce(deep)
    enlarged = reduced.repeat_interleave(2, 2).repeat_interleave(2, 3)
    fused = fusion([x, deep])
    torch.testing.assert_close(fused[0], finer.expand((finer.reduce(x) + enlarged) / 2))
    torch.testing.assert_close(fused[1], deeper.expand(reduced))


class Network(nn.Module):
    """A backbone with the name of mmpretrain's ResNet and the modules of it that TransKD reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.maxpool = nn.Conv2d(3, width, 4, 4)
        for i in (2, 3, 4):
            block = nn.Conv2d(width * 2 ** (i - 2), width * 2 ** (i - 1), 2, 2)
            setattr(self, f"layer{i}", nn.Sequential(block, nn.Identity()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps of all four levels."""
        out = [self.maxpool(x)]
        for i in (2, 3, 4):
            out.append(getattr(self, f"layer{i}")(out[-1]))
        return tuple(out)


Network.__name__ = "ResNet"  # by which TransKD identifies the network


class Model(nn.Module):
    """A model with a backbone, as a task trains it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = Network(width)


def transkd(student: int, teacher: int, **options: Any) -> tuple[TransKD, Model, Model]:
    """(TransKD, student, teacher): models of these widths, to which TransKD is attached."""
    levels = {level: level for level in LEVELS}
    student_maps, teacher_maps = (
        maps(**{level: width * 2**i for i, level in enumerate(LEVELS)})
        for width in (student, teacher)
    )
    torch.manual_seed(0)
    method = TransKD(levels, student_maps, teacher_maps, **options)
    networks = Model(student), Model(teacher)
    method.attach(*networks)
    return method, *networks


def losses_on(method: TransKD, student: Model, teacher: Model, x: Tensor) -> dict[str, Tensor]:
    """The losses {name: [B]} of the method for the input x [B, 3, H, W]."""
    student_maps = dict(zip(LEVELS, student.backbone(x), strict=True))
    with torch.no_grad():
        teacher_maps = dict(zip(LEVELS, teacher.backbone(x), strict=True))
    return method.losses(context(student_maps, teacher_maps, x))


def test_transkd_without_betas_does_not_read_patch_embeddings():
    """It has no loss term, no parameters and no hooks in the networks for them."""
    method, student, teacher = transkd(4, 6, betas={})
    losses = losses_on(method, student, teacher, random_tensor(2, 3, 64, 64))
    assert set(losses) == {"hcl"}
    assert not list(method.embeddings.parameters())
    for module in (*student.modules(), *teacher.modules()):
        assert not module._forward_hooks


def test_transkd_adds_the_weighted_errors_of_the_patch_embeddings():
    betas = {"s8": 0.1, "s16": 0.5, "s32": 1.0}
    method, student, teacher = transkd(4, 6, betas=betas)
    x = random_tensor(2, 3, 64, 64)
    losses = losses_on(method, student, teacher, x)
    expected = torch.zeros(2)
    student_maps, teacher_maps = student.backbone(x), teacher.backbone(x)
    for level, student_map, teacher_map in zip(LEVELS, student_maps, teacher_maps, strict=True):
        if level in betas:
            # In these networks the patch embedding of a level is its map.
            error = method.embeddings[level](student_map) - teacher_map
            expected = expected + betas[level] * error.square().mean((1, 2, 3))
    torch.testing.assert_close(losses["pea"], expected)
    assert set(method.embeddings) == set(LEVELS[1:])


def test_transkd_sorts_its_levels_by_stride():
    """A stored spec has sorted keys, where s16 is first; the finest level is s4."""
    level_maps = maps(s4=4, s8=8, s16=16, s32=32)
    method = TransKD({k: k for k in sorted(LEVELS)}, level_maps, level_maps)
    assert list(method.levels) == list(LEVELS)
    # Only the deepest level, the last one, has no deeper level to be mixed with.
    has_no_deeper = [fusion.select is None for fusion in cast(Any, method.fusion.fusions)]
    assert has_no_deeper == [False] * 3 + [True]


def test_the_weight_of_transkd_scales_only_hcl():
    x = random_tensor(2, 3, 64, 64)
    weight_1, weight_2 = (
        losses_on(*transkd(4, 6, weight=weight, betas=BETAS), x) for weight in (1.0, 2.0)
    )
    torch.testing.assert_close(weight_2["hcl"], 2 * weight_1["hcl"])
    torch.testing.assert_close(weight_2["pea"], weight_1["pea"])


def test_transkd_gives_gradients_to_the_student_and_none_to_the_teacher():
    method, student, teacher = transkd(4, 6, betas=BETAS)
    losses = losses_on(method, student, teacher, random_tensor(2, 3, 64, 64))
    torch.stack([term.mean() for term in losses.values()]).sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(levels={"s4": "s4"}, betas={"s8": 1.0}), "level .s8. in `betas`"),
        (dict(levels={"s64": "s4"}), "level 's64' in the student"),
        (dict(levels={"s4": "s64"}), "map 's64' in the teacher"),
    ],
)
def test_transkd_refuses_levels_that_do_not_fit(change, message):
    level_maps = maps(s4=4, s8=8, s16=16, s32=32)
    options = {"levels": {level: level for level in LEVELS}, **change}
    with pytest.raises(KdepError, match=message):
        TransKD(**options, student_maps=level_maps, teacher_maps=level_maps)


@pytest.mark.parametrize("model", ["test_convnext", "swin_tiny_patch4_window7_224"])
def test_patch_embeddings_of_timm_networks_have_the_shapes_of_the_levels(model):
    """A renamed module, or one with another layout of its output, would have other shapes."""
    from kdep_bench.students.timm_backbone import TimmBackbone
    from kdep_bench.transfer.methods.transkd import Embeddings

    options = {"strict_img_size": False, "always_partition": True} if "swin" in model else {}
    backbone = TimmBackbone(model, out_indices=(0, 1, 2, 3), **options).eval()
    assert list(embedding_paths(backbone)) == list(LEVELS)
    reader = Embeddings(backbone, LEVELS)
    with torch.no_grad():
        levels = backbone(torch.zeros(1, 3, 64, 64))
    for (name, embedding), level in zip(reader.take().items(), levels, strict=True):
        assert embedding.shape == level.shape, name


def test_an_unknown_network_has_no_patch_embeddings():
    with pytest.raises(KdepError, match="patch embeddings of the network Linear are not known"):
        embedding_paths(nn.Linear(1, 1))


def test_the_objective_nfd_as_transfer_method_is_two_minus_twice_the_correlation():
    """NFD (normalised feature distillation) is an objective of pre-training."""
    level_maps = maps(s8=1)
    method = AddedObjective(dict(type=NFD, levels={"s8": "s8"}, weight=1.0), level_maps, level_maps)
    student, teacher = random_tensor(4, 1, 16, 16), random_tensor(4, 1, 16, 16, seed=1)
    (loss,) = method.losses(context({"s8": student}, {"s8": teacher})).values()
    correlation = torch.stack(
        [
            torch.corrcoef(torch.stack([s.flatten(), t.flatten()]))[0, 1]
            for s, t in zip(student, teacher, strict=True)
        ]
    )
    torch.testing.assert_close(loss, 2 - 2 * correlation, atol=1e-4, rtol=1e-4)


# ---- whole stages ----


class LevelSquare(TransferMethod):
    """A transfer method: weight times the mean square of the student's deepest level, per sample.

    With `bad`, it returns the map itself, which the stage must refuse.
    """

    families = frozenset({"segmentation"})

    def __init__(self, weight: float = 1.0, bad: bool = False) -> None:
        super().__init__()
        self.weight, self.bad = weight, bad
        self.unused = nn.Linear(4, 4)

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        """The term "toy"."""
        deepest = ctx.maps["s32"]
        if self.bad:
            return {"toy": deepest}
        return {"toy": self.weight * deepest.square().flatten(1).mean(1)}


LEVEL_SQUARE = f"{__name__}.LevelSquare"


def short_task(**recipe: Any) -> dict[str, Any]:
    """The task smoke_seg with four iterations, and these changes to its recipe."""
    task = config("tasks", "smoke_seg")
    task["recipe"].update({"iters": 4, "warmup": 1, **recipe})
    return task


def run(
    student: dict[str, Any],
    data: Path,
    export: Path,
    out: Path,
    changes: dict[str, Any],
    teacher: Path | None = None,
    task: dict[str, Any] | None = None,
    stop_at: int | None = None,
    pretraining: Path | None = None,
) -> dict[str, Any]:
    """The outputs of a real transfer stage.

    Args:
        student: config of the student.
        data, export: directories of the data tree and of the export stage.
        out: directory of the stage.
        changes: entries of the stage's spec that are changed or added.
        teacher: directory of the tuned teacher's stage.
        task: config of the task; None: `short_task`.
        stop_at: step in which the stage is interrupted.
        pretraining: directory of the student's pre-training stage, if the method reads it.
    """

    def progress(done: int, total: int, note: str = "") -> None:
        """Interrupts the stage in the step `stop_at`, as Ctrl-C would."""
        if stop_at is not None and done >= stop_at:
            raise KeyboardInterrupt

    out.mkdir(parents=True, exist_ok=True)
    spec = {"task": task or short_task(), "student": student, "seed": 0, "threads": 1, **changes}
    spec = json.loads(json.dumps(spec, sort_keys=True))  # as the engine stores it
    inputs = {"prepare": data.parent, "export": export}
    if teacher is not None:
        inputs["teacher"] = teacher
    if pretraining is not None:
        inputs["pretrain"] = pretraining
    return stage.run(spec, inputs, out, progress if stop_at is not None else quiet)


def error_of(*args: Any) -> str:
    """The message of the KdepError of a stage that must fail."""
    try:
        run(*args)
    except KdepError as error:
        return str(error)
    return ""


def interrupted(*args: Any) -> bool:
    """Whether the stage was interrupted."""
    try:
        run(*args)
    except KeyboardInterrupt:
        return True
    return False


def untimed(outputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs without the measured times."""
    return {k: v for k, v in outputs.items() if k not in TIMED}


@pytest.fixture(scope="module")
def teacher_student() -> dict[str, Any]:
    """The teacher's network: a student of another width."""
    return config("students", "resnet18_w48")


@pytest.fixture(scope="module")
def tuned_teacher(tmp_path_factory, teacher_student, data, in_subprocess) -> Path:
    """Directory of a finished transfer stage that stored its model, a tuned teacher."""
    out = tmp_path_factory.mktemp("tuned")
    in_subprocess(export_random, teacher_student, out)
    outputs = in_subprocess(
        run, teacher_student, data, out / "export", out / "t", {"keep_model": True}
    )
    assert len(outputs["model_checksum"]) == 64
    assert "transfer" not in outputs
    return out / "t"


METHODS = {
    "transkd": dict(
        type=TRANSKD,
        levels={k: k for k in LEVELS},
        betas=dict(BETAS),
        mixer=True,
        assistants=True,
    ),
    "nfd": dict(type=ADDED, objective=dict(type=NFD, levels={"s32": "s32"}, weight=5.0)),
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", METHODS)
def test_a_transfer_method_adds_its_losses_and_saves_only_the_task_s_model(
    name, data, exported, student, teacher_student, tuned_teacher, tmp_path, in_subprocess
):
    changes = {"transfer": METHODS[name], "teacher": teacher_student, "keep_model": True}
    outputs = in_subprocess(run, student, data, exported, tmp_path / "a", changes, tuned_teacher)
    plain = in_subprocess(run, student, data, exported, tmp_path / "plain", {"keep_model": True})
    json.dumps(outputs, allow_nan=False)
    assert outputs["gate"]["coverage"] == 1.0
    assert outputs["gate"] == plain["gate"]
    # The saved model has neither the teacher nor the method's layers.
    saved, saved_plain = (read_tensors(tmp_path / name / MODEL) for name in ("a", "plain"))
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in saved_plain.items()}
    # The loss of a step is the task's plus the method's; in step 1 the task's is that of `plain`.
    terms = {k: dict(v) for k, v in outputs["curves"].items() if k != "loss"}
    assert terms
    assert all(k.startswith("transfer.loss_") for k in terms)
    first, plain_first = dict(outputs["curves"]["loss"])[1], dict(plain["curves"]["loss"])[1]
    added = sum(curve[1] for curve in terms.values())
    assert added > 0
    assert first == pytest.approx(plain_first + added, rel=1e-5)
    assert outputs["transfer"]["extra_forwards"] == 4 * 2  # steps x batch
    assert outputs["transfer"]["extra_parameters"] > 6e6  # of the teacher and the method
    assert outputs["curves"]["loss"] != plain["curves"]["loss"]
    repeated = in_subprocess(run, student, data, exported, tmp_path / "b", changes, tuned_teacher)
    assert untimed(repeated) == untimed(outputs)


@pytest.mark.e2e
def test_a_method_of_weight_0_changes_no_score(data, exported, student, tmp_path, in_subprocess):
    """Building the method's layers does not change the task's random numbers."""
    changes = {"transfer": {"type": LEVEL_SQUARE, "weight": 0.0}}
    outputs = in_subprocess(run, student, data, exported, tmp_path / "a", changes)
    plain = in_subprocess(run, student, data, exported, tmp_path / "b", {})
    for key in ("value", "metrics", "per_class", "gate"):
        assert outputs[key] == plain[key]
    assert outputs["curves"]["loss"] == plain["curves"]["loss"]
    # The method's unused linear layer has 4 x 4 + 4 parameters.
    assert outputs["transfer"] == {"extra_parameters": 20, "extra_forwards": 0}
    assert "transfer" not in plain


@pytest.mark.e2e
def test_an_interrupted_transfer_with_a_method_gives_the_outputs_of_an_uninterrupted_one(
    data, exported, student, teacher_student, tuned_teacher, tmp_path, in_subprocess
):
    changes = {"transfer": METHODS["transkd"], "teacher": teacher_student}
    call = (student, data, exported, tmp_path / "a", changes, tuned_teacher)
    assert in_subprocess(interrupted, *call, None, 3)
    resumed = in_subprocess(run, *call)
    uninterrupted = in_subprocess(
        run, student, data, exported, tmp_path / "b", changes, tuned_teacher
    )
    assert untimed(resumed) == untimed(uninterrupted)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transfer": METHODS["nfd"]}, "needs a tuned teacher"),
        ({"transfer": {"type": NFD}}, "is not a transfer method"),
        ({"transfer": {"type": LEVEL_SQUARE, "bad": True}}, "one value per sample, or"),
    ],
)
def test_the_stage_refuses_a_method_that_cannot_be_used(
    changes, message, data, exported, student, tmp_path, in_subprocess
):
    assert message in in_subprocess(error_of, student, data, exported, tmp_path, changes)


@pytest.mark.e2e
def test_the_stage_refuses_a_task_that_the_method_does_not_support(
    data, exported, student, tmp_path, in_subprocess
):
    for kind, problem in (
        ("finetune", "does not support the task"),
        ("probe", "no transfer method"),
    ):
        task = config("tasks", f"smoke_{kind}")
        changes = {"transfer": {"type": LEVEL_SQUARE}}
        message = in_subprocess(error_of, student, data, exported, tmp_path, changes, None, task)
        assert problem in message


@pytest.mark.e2e
def test_a_tuned_teacher_of_other_shapes_is_refused(
    data, exported, student, tuned_teacher, tmp_path, in_subprocess
):
    changes = {"transfer": METHODS["nfd"], "teacher": student}
    assert "do not fit" in in_subprocess(
        error_of, student, data, exported, tmp_path, changes, tuned_teacher
    )
