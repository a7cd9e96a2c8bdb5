"""Transfer methods: the closed forms of their losses, and real transfer stages with them."""

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
BETAS = {"s4": 0.1, "s8": 0.1, "s16": 0.5, "s32": 1.0}
TIMED = {"train_s", "eval_s", "images_per_s"}


def maps(**channels: int) -> dict[str, dict[str, int]]:
    return {k: {"channels": c, "stride": int(k[1:]), "side": 8} for k, c in channels.items()}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def context(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> TransferContext:
    count = len(next(iter(student.values())))
    return TransferContext(torch.zeros(count, 3, 8, 8), [], student, teacher)


# ---- closed forms ----


def test_hcl_on_1x1_maps_is_the_mean_squared_error():
    s, t = drawn(3, 5, 1, 1), drawn(3, 5, 1, 1, seed=1)
    want = (s - t).square().mean((1, 2, 3))
    torch.testing.assert_close(hierarchical_context(s, t), want)


def test_hcl_of_a_constant_difference_is_its_square_at_every_size():
    for side in (1, 2, 3, 4, 7, 16):
        t = drawn(2, 3, side, side)
        torch.testing.assert_close(hierarchical_context(t + 3, t), torch.full((2,), 9.0))


def test_hcl_weighs_each_pooled_size_half_as_much_as_the_one_before():
    """On an 8x8 checkerboard of +-1 every pooled map is 0: 1 / (1 + 1/2 + 1/4 + 1/8) remains. On
    2x2 there is one pooled size: 1 / (1 + 1/2)."""
    for side, want in ((8, 8 / 15), (2, 2 / 3)):
        i = torch.arange(side)
        board = ((i[:, None] + i) % 2 * 2.0 - 1).expand(1, 4, side, side)
        got = hierarchical_context(board, torch.zeros_like(board))
        torch.testing.assert_close(got, torch.tensor([want]))


def test_fusion_of_one_level_is_its_two_convolutions():
    fusion = CrossSelectiveFusion([5], [7], 16).eval()
    x = drawn(2, 5, 6, 6)
    own = cast(Any, fusion.fusions[0])
    (got,) = fusion([x])
    torch.testing.assert_close(got, own.expand(own.reduce(x)))
    assert not [name for name, _ in fusion.named_parameters() if "select" in name]


def test_fusion_is_a_mixture_of_the_level_and_the_one_below_it():
    """With equal choices the two weights are one half: the mean of both maps."""
    fusion = CrossSelectiveFusion([5, 6], [7, 8], 16).eval()
    high, low = (cast(Any, f) for f in fusion.fusions)
    for p in high.select.parameters():
        nn.init.zeros_(p)
    x, deep = drawn(2, 5, 6, 6), drawn(2, 6, 3, 3, seed=1)
    below = low.reduce(deep)
    enlarged = below.repeat_interleave(2, 2).repeat_interleave(2, 3)
    got = fusion([x, deep])
    torch.testing.assert_close(got[0], high.expand((high.reduce(x) + enlarged) / 2))
    torch.testing.assert_close(got[1], low.expand(below))


class Network(nn.Module):
    """A backbone called ResNet, with the modules that TransKD reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.maxpool = nn.Conv2d(3, width, 4, 4)
        for i in (2, 3, 4):
            block = nn.Conv2d(width * 2 ** (i - 2), width * 2 ** (i - 1), 2, 2)
            setattr(self, f"layer{i}", nn.Sequential(block, nn.Identity()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = [self.maxpool(x)]
        for i in (2, 3, 4):
            out.append(getattr(self, f"layer{i}")(out[-1]))
        return tuple(out)


Network.__name__ = "ResNet"


class Whole(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = Network(width)


def transkd(student: int, teacher: int, **more: Any) -> tuple[TransKD, Whole, Whole]:
    levels = {k: k for k in LEVELS}
    own, its = (maps(**{k: w * 2**i for i, k in enumerate(LEVELS)}) for w in (student, teacher))
    torch.manual_seed(0)
    method = TransKD(levels, own, its, **more)
    networks = Whole(student), Whole(teacher)
    method.attach(*networks)
    return method, *networks


def losses_on(method: TransKD, student: Whole, teacher: Whole, x: Tensor) -> dict[str, Tensor]:
    own = dict(zip(LEVELS, student.backbone(x), strict=True))
    with torch.no_grad():
        its = dict(zip(LEVELS, teacher.backbone(x), strict=True))
    return method.losses(context(own, its))


def test_transkd_without_betas_has_no_patch_embedding_graph():
    """Neither a term nor parameters nor hooks in the networks."""
    method, student, teacher = transkd(4, 6, betas={})
    losses = losses_on(method, student, teacher, drawn(2, 3, 64, 64))
    assert set(losses) == {"hcl"}
    assert not list(method.embeddings.parameters())
    for module in (*student.modules(), *teacher.modules()):
        assert not module._forward_hooks


def test_transkd_adds_the_weighted_errors_of_the_patch_embeddings():
    betas = {"s8": 0.1, "s16": 0.5, "s32": 1.0}
    method, student, teacher = transkd(4, 6, betas=betas)
    x = drawn(2, 3, 64, 64)
    losses = losses_on(method, student, teacher, x)
    want = torch.zeros(2)
    own, its = student.backbone(x), teacher.backbone(x)
    for k, a, b in zip(LEVELS, own, its, strict=True):
        if k in betas:
            want = want + betas[k] * (method.embeddings[k](a) - b).square().mean((1, 2, 3))
    torch.testing.assert_close(losses["pea"], want)
    assert set(method.embeddings) == set(LEVELS[1:])


def test_transkd_fuses_by_stride_whatever_the_order_of_its_levels():
    """The engine stores a spec with sorted keys: s16 would otherwise be read as the finest."""
    known = maps(s4=4, s8=8, s16=16, s32=32)
    mixed = TransKD({k: k for k in sorted(LEVELS)}, known, known)
    assert list(mixed.levels) == list(LEVELS)
    assert [f.select is None for f in cast(Any, mixed.fusion.fusions)] == [False] * 3 + [True]


def test_transkd_s_weight_scales_hcl_alone():
    x = drawn(2, 3, 64, 64)
    once, twice = (losses_on(*transkd(4, 6, weight=w, betas=BETAS), x) for w in (1.0, 2.0))
    torch.testing.assert_close(twice["hcl"], 2 * once["hcl"])
    torch.testing.assert_close(twice["pea"], once["pea"])


def test_transkd_teaches_the_student_and_never_the_teacher():
    method, student, teacher = transkd(4, 6, betas=BETAS)
    losses = losses_on(method, student, teacher, drawn(2, 3, 64, 64))
    torch.stack([term.mean() for term in losses.values()]).sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(levels={"s4": "s4"}, betas={"s8": 1.0}), "level in `betas`"),
        (dict(levels={"s64": "s4"}), "level of the student"),
        (dict(levels={"s4": "s64"}), "map of the teacher"),
    ],
)
def test_transkd_refuses_levels_that_do_not_fit(change, match):
    known = maps(s4=4, s8=8, s16=16, s32=32)
    with pytest.raises(KdepError, match=match):
        TransKD(
            **{"levels": {k: k for k in LEVELS}, **change}, student_maps=known, teacher_maps=known
        )


@pytest.mark.parametrize("model", ["test_convnext", "swin_tiny_patch4_window7_224"])
def test_patch_embeddings_of_timm_networks_have_the_levels_sizes(model):
    """A module that was renamed, or whose output has another layout, would be read as another."""
    from kdep_bench.students.timm_backbone import TimmBackbone
    from kdep_bench.transfer.methods.transkd import Embeddings

    more = {"strict_img_size": False, "always_partition": True} if "swin" in model else {}
    backbone = TimmBackbone(model, out_indices=(0, 1, 2, 3), **more).eval()
    assert list(embedding_paths(backbone)) == list(LEVELS)
    reader = Embeddings(backbone, LEVELS)
    with torch.no_grad():
        levels = backbone(torch.zeros(1, 3, 64, 64))
    for (name, embedding), level in zip(reader.take().items(), levels, strict=True):
        assert embedding.shape == level.shape, name


def test_an_unknown_network_has_no_patch_embeddings():
    with pytest.raises(KdepError, match="patch embeddings of the network Linear are not known"):
        embedding_paths(nn.Linear(1, 1))


def test_nfd_at_transfer_is_two_less_twice_the_correlation():
    own = maps(s8=1)
    method = AddedObjective(dict(type=NFD, levels={"s8": "s8"}, weight=1.0), own, own)
    s, t = drawn(4, 1, 16, 16), drawn(4, 1, 16, 16, seed=1)
    (got,) = method.losses(context({"s8": s}, {"s8": t})).values()
    rho = torch.stack(
        [
            torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
            for a, b in zip(s, t, strict=True)
        ]
    )
    torch.testing.assert_close(got, 2 - 2 * rho, atol=1e-4, rtol=1e-4)


# ---- whole stages ----


class Toy(TransferMethod):
    """Weight times the mean square of the student's deepest level."""

    families = frozenset({"segmentation"})

    def __init__(self, weight: float = 1.0, bad: bool = False) -> None:
        super().__init__()
        self.weight, self.bad = weight, bad
        self.unused = nn.Linear(4, 4)

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        deepest = ctx.maps["s32"]
        if self.bad:
            return {"toy": deepest}
        return {"toy": self.weight * deepest.square().flatten(1).mean(1)}


TOY = f"{__name__}.Toy"


def seg(**recipe: Any) -> dict[str, Any]:
    task = config("tasks", "smoke_seg")
    task["recipe"].update({"iters": 4, "warmup": 1, **recipe})
    return task


def run(
    student: dict[str, Any],
    data: Path,
    export: Path,
    out: Path,
    more: dict[str, Any],
    teacher: Path | None = None,
    task: dict[str, Any] | None = None,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """The outputs of a real transfer stage; `stop_at`: it is interrupted in that step."""

    def progress(done: int, total: int, note: str = "") -> None:
        if stop_at is not None and done >= stop_at:
            raise KeyboardInterrupt

    out.mkdir(parents=True, exist_ok=True)
    spec = {"task": task or seg(), "student": student, "seed": 0, "threads": 1, **more}
    spec = json.loads(json.dumps(spec, sort_keys=True))  # as the engine stores it
    inputs = {"prepare": data.parent, "export": export}
    if teacher is not None:
        inputs["teacher"] = teacher
    return stage.run(spec, inputs, out, progress if stop_at is not None else quiet)


def sentence(*args: Any) -> str:
    """The KdepError of a stage that must fail."""
    try:
        run(*args)
    except KdepError as e:
        return str(e)
    return ""


def interrupted(*args: Any) -> bool:
    try:
        run(*args)
    except KeyboardInterrupt:
        return True
    return False


def untimed(outputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in outputs.items() if k not in TIMED}


@pytest.fixture(scope="module")
def other() -> dict[str, Any]:
    """The teacher's student: of another width."""
    return config("students", "resnet18_w48")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, other, data, in_subprocess) -> Path:
    """A finished transfer stage that kept its model."""
    out = tmp_path_factory.mktemp("tuned")
    in_subprocess(export_random, other, out)
    made = in_subprocess(run, other, data, out / "export", out / "t", {"keep_model": True})
    assert len(made["model_checksum"]) == 64
    assert "transfer" not in made
    return out / "t"


METHODS = {
    "transkd": dict(type=TRANSKD, levels={k: k for k in LEVELS}, betas=dict(BETAS)),
    "nfd": dict(type=ADDED, objective=dict(type=NFD, levels={"s32": "s32"}, weight=5.0)),
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", METHODS)
def test_a_transfer_method_trains_and_leaves_only_the_task_s_model(
    name, data, exported, student, other, tuned, tmp_path, in_subprocess
):
    more = {"transfer": METHODS[name], "teacher": other, "keep_model": True}
    made = in_subprocess(run, student, data, exported, tmp_path / "a", more, tuned)
    plain = in_subprocess(run, student, data, exported, tmp_path / "plain", {"keep_model": True})
    json.dumps(made, allow_nan=False)
    assert made["gate"]["coverage"] == 1.0
    assert made["gate"] == plain["gate"]
    # The saved model is the task's own: no teacher, no projector.
    kept, want = (read_tensors(tmp_path / n / MODEL) for n in ("a", "plain"))
    assert {k: v.shape for k, v in kept.items()} == {k: v.shape for k, v in want.items()}
    # Every step's loss is the task's and the method's; the first batch's is the plain one's.
    terms = {k: dict(v) for k, v in made["curves"].items() if k != "loss"}
    assert terms
    assert all(k.startswith("transfer.loss_") for k in terms)
    first, alone = dict(made["curves"]["loss"])[1], dict(plain["curves"]["loss"])[1]
    assert sum(t[1] for t in terms.values()) > 0
    assert first == pytest.approx(alone + sum(t[1] for t in terms.values()), rel=1e-5)
    assert made["transfer"]["extra_forwards"] == 4 * 2  # steps x batch
    assert made["transfer"]["extra_parameters"] > 6e6  # of the teacher and the method
    assert made["curves"]["loss"] != plain["curves"]["loss"]
    again = in_subprocess(run, student, data, exported, tmp_path / "b", more, tuned)
    assert untimed(again) == untimed(made)


@pytest.mark.e2e
def test_a_method_of_weight_0_changes_no_score(data, exported, student, tmp_path, in_subprocess):
    """The networks beside the model draw nothing from its generator and are not scored."""
    toy = {"transfer": {"type": TOY, "weight": 0.0}}
    made = in_subprocess(run, student, data, exported, tmp_path / "a", toy)
    plain = in_subprocess(run, student, data, exported, tmp_path / "b", {})
    for key in ("value", "metrics", "per_class", "gate"):
        assert made[key] == plain[key]
    assert made["curves"]["loss"] == plain["curves"]["loss"]
    assert made["transfer"] == {"extra_parameters": 20, "extra_forwards": 0}
    assert "transfer" not in plain


@pytest.mark.e2e
def test_an_interrupted_transfer_with_a_method_repeats_what_an_uninterrupted_one_gives(
    data, exported, student, other, tuned, tmp_path, in_subprocess
):
    more = {"transfer": METHODS["transkd"], "teacher": other}
    call = (student, data, exported, tmp_path / "a", more, tuned)
    assert in_subprocess(interrupted, *call, None, 3)
    made = in_subprocess(run, *call)
    whole = in_subprocess(run, student, data, exported, tmp_path / "b", more, tuned)
    assert untimed(made) == untimed(whole)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"transfer": METHODS["nfd"]}, "needs a tuned teacher"),
        ({"transfer": {"type": NFD}}, "is not a transfer method"),
        ({"transfer": {"type": TOY, "bad": True}}, "one value per sample, or"),
    ],
)
def test_the_stage_refuses(more, match, data, exported, student, tmp_path, in_subprocess):
    assert match in in_subprocess(sentence, student, data, exported, tmp_path, more)


@pytest.mark.e2e
def test_the_stage_refuses_a_task_that_the_method_does_not_support(
    data, exported, student, tmp_path, in_subprocess
):
    for kind, match in (("finetune", "does not support the task"), ("probe", "no transfer method")):
        task = config("tasks", f"smoke_{kind}")
        more = {"transfer": {"type": TOY}}
        message = in_subprocess(sentence, student, data, exported, tmp_path, more, None, task)
        assert match in message


@pytest.mark.e2e
def test_a_tuned_teacher_of_other_shapes_is_refused(
    data, exported, student, tuned, tmp_path, in_subprocess
):
    more = {"transfer": METHODS["nfd"], "teacher": student}
    assert "do not fit" in in_subprocess(sentence, student, data, exported, tmp_path, more, tuned)
