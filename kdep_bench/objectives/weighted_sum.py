"""A weighted sum of objectives; each weight may change over training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules
from kdep_bench.objectives.base import Context, Objective, build_args_of_part, build_objective
from kdep_bench.objectives.weighting import build_weighting
from kdep_bench.schedules.build import as_schedule


class WeightedSum(Objective):
    """L = sum over parts k of w_k(step) * L_k.

    The weighted terms are named "<part>.<term>", or "<part>" if the part has only one term.

    Args:
        parts: {name: {"objective": {type, ...}, "weight": number or config of a schedule,
            "teacher": role}}. `weight` is 1 by default. `teacher` is the role of the teacher that
            the part reads; the first teacher by default.
        weighting: config of a Weighting, which gives the terms additional weights per sample.
        epochs, build_args: set by the pre-training stage; each part gets the values that it
            requires.

    Raises:
        KdepError: no parts, or a part with a wrong key or a dot in its name.
    """

    needs = frozenset()
    stage_arguments = frozenset({"epochs"})

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Any]],
        epochs: float | None = None,
        weighting: Mapping[str, Any] | None = None,
        **build_args: Any,
    ) -> None:
        super().__init__()
        if not parts:
            raise KdepError(
                "a weighted sum has no parts",
                fix="add at least one to `parts` in the method's objective",
            )
        for name, part in parts.items():
            if (
                set(part) - {"objective", "weight", "teacher"}
                or "objective" not in part
                or ("." in name)
            ):
                raise KdepError(
                    f"the part {name!r} of a weighted sum has the keys {sorted(part)}",
                    expected="'objective' and optionally 'weight' (default 1) and 'teacher' (the "
                    "role of the teacher that it reads), in a part whose name has no dot",
                    fix="correct `parts` in the method's objective",
                )
        build_args["epochs"] = epochs
        self.members = nn.ModuleDict(
            {
                name: build_objective(
                    part["objective"], build_args_of_part(build_args, part.get("teacher"))
                )
                for name, part in parts.items()
            }
        )
        self.roles = {k: p["teacher"] for k, p in parts.items() if p.get("teacher") is not None}
        self.weighting = build_weighting(weighting, build_args)
        self.weights = {k: as_schedule(p.get("weight", 1.0), epochs) for k, p in parts.items()}

    @classmethod
    def parts(cls, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        objectives = [part["objective"] for part in config.get("parts", {}).values()]
        weighting = config.get("weighting")
        return objectives if weighting is None else [*objectives, weighting]

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, member in self.members.items():
            assert isinstance(member, Objective)
            weight = self.weights[name](ctx.step, ctx.steps)
            terms = member.terms(self._part_context(name, ctx))
            for term, value in terms.items():
                out[name if len(terms) == 1 else f"{name}.{term}"] = weight * value
        return out if self.weighting is None else self.weighting.weighted(ctx, out)

    def _part_context(self, name: str, ctx: Context) -> Context:
        """The batch with the outputs of the teacher that the part `name` reads."""
        return ctx.of_teacher(self.roles[name]) if name in self.roles else ctx

    def attach(self, student: nn.Module, new_network: Callable[..., nn.Module]) -> None:
        for member in self.members.values():
            assert isinstance(member, Objective)
            member.attach(student, new_network)

    def before_student(self, extra: Mapping[str, Tensor]) -> None:
        for member in self.members.values():
            assert isinstance(member, Objective)
            member.before_student(extra)

    def auxiliary_modules(self) -> dict[str, AuxiliaryModule]:
        return {
            f"{name}.{part_name}": auxiliary
            for name, member in self.members.items()
            if isinstance(member, Objective)
            for part_name, auxiliary in member.auxiliary_modules().items()
        }

    def update_auxiliary(self, ctx: Context, auxiliary: AuxiliaryModules) -> None:
        for name, member in self.members.items():
            assert isinstance(member, Objective)
            member.update_auxiliary(self._part_context(name, ctx), auxiliary.part(name))

    def after_step(self) -> None:
        for member in self.members.values():
            assert isinstance(member, Objective)
            member.after_step()
        if self.weighting is not None:
            self.weighting.after_step()
