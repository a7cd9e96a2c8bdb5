"""Suite -> graph of stages. Pure arithmetic on configs: nothing is run and no file is read.

prepare -> views -> cache -> align -> pretrain -> export -> transfer. A stage's id is its kind, its
name and a hash of (kind, kind version, spec, upstream ids): whatever changes one of these changes
the id of that stage and of all that follow, and of nothing else. So the transform of a method
(T of PTS) belongs to `pretrain`, not to `align`, and recipes that only `transfer` reads are in no
earlier spec. Arms share every stage whose id is equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdep_bench import trackers
from kdep_bench.data.normalisation import check_recipe, check_stated
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import canonical_json
from kdep_bench.objectives.levels import levels_of
from kdep_bench.suite import claim_checks
from kdep_bench.suite.arguments import check_optimizer
from kdep_bench.suite.arms import PROSE, arms_of, assistant_of, teacher_config_for, trains, without
from kdep_bench.suite.config import merged
from kdep_bench.suite.data_config import check_data_plan
from kdep_bench.suite.graph import Cell, Plan, add_stage
from kdep_bench.suite.kinds import KINDS, StageKind
from kdep_bench.suite.known_data import has_labels
from kdep_bench.suite.pairs import check_pair, check_task, check_task_data
from kdep_bench.suite.schema import Json, Suite, method_needs, uses_teacher
from kdep_bench.suite.train_test_overlap import tests_on, trained_on
from kdep_bench.transfer import model_card

# Keys of a method that the planner itself consumes.
_PLANNING = {"align", "family", "label_policy", "students", "needs", "teacher", "optimizer"}
# What a cache holds beside the pooled feature, where a method of the suite reads it.
STORED = {"logits", "maps", "tokens"}
_COMMON = {"prepare", "views"}  # stages that an arm and its teacher share
SEED_STEP = 1000  # keeps the scratch arm's initialisation seeds of different pairs apart
MOST_CELLS = 20_000  # of a suite; planning as many takes some 10 s


class _Builder:
    """Adds the stages of one suite to one plan."""

    def __init__(self, suite: Suite, kinds: Mapping[str, StageKind], plan: Plan) -> None:
        self.suite, self.kinds, self.plan = suite, kinds, plan
        # What stages are told of each config: one dict each, so that its text is made once.
        self.told: dict[int, Json] = {}
        self.budgets: dict[tuple[float, bool, str], Json] = {}
        self.live = suite.budget.teacher == "live"
        check_optimizer(suite.budget.optimizer, "the optimizer of the budget")
        if suite.budget.batch % suite.budget.accumulate:
            raise KdepError(
                f"budget.batch = {suite.budget.batch} cannot be split into "
                f"{suite.budget.accumulate} micro-batches of equal size",
                fix="make budget.batch a multiple of budget.accumulate",
            )
        self.runtime: dict[str, dict[str, Any]] = suite.runtime.model_dump(
            exclude={"timed", "trackers"}
        )
        for what, given in self.runtime.items():
            for kind in set(given) - set(kinds):
                raise unknown_name(f"stage kind in runtime.{what}", kind, set(kinds))

    def config(self, page: Json, method: bool = False) -> Json:
        """A student, task or method as its stages are told it."""
        if id(page) not in self.told:
            made = without(page, PROSE | (_PLANNING if method else set()))
            self.told[id(page)] = (
                {"labels_used": False, "transform": None, **made} if method else made
            )
        return self.told[id(page)]

    def budget_of(self, epochs: float, whole: bool, method: Json) -> Json:
        """The budget as a stage of `method` is told it, cut to `epochs`.

        Of the whole pool's images, both ways of counting an epoch are the same stage.
        """
        own = method.get("optimizer") or {}
        key = epochs, whole, canonical_json(own)
        if key not in self.budgets:
            told = {**self.suite.budget.spec(), "epochs": epochs}
            if own:
                where = f"optimizer of method {method['name']!r}"
                told["optimizer"] = merged(told["optimizer"], own, where)
            self.budgets[key] = without(told, {"epochs_over"} if whole else set())
        return self.budgets[key]

    def add(
        self,
        kind: str,
        name: str,
        spec: Json,
        needs: Mapping[str, str],
        function: Any = None,
        about: Json | None = None,
    ) -> str:
        return add_stage(
            self.plan,
            kind,
            name,
            spec,
            needs,
            kinds=self.kinds,
            function=function,
            trackers=self.suite.runtime.trackers if kind in trackers.KINDS else None,
            about=about,
            **{what: given.get(kind) for what, given in self.runtime.items()},
        )

    def build(self) -> Plan:
        suite = self.suite
        kind = suite.data.get("type")
        maker = None if kind is None else kind if ":" in kind else ":".join(kind.rsplit(".", 1))
        prepare = self.add(
            "prepare",
            suite.data["name"],
            without(suite.data, PROSE | {"name", "type", "labels", "pool_classes"}),
            {},
            maker,
        )
        check_data_plan(suite.data, suite.tasks)
        drawn = suite.share_by == "class" and min(suite.shares) < 1
        if drawn and not has_labels(suite.data):
            raise KdepError(
                "the suite draws its data fractions per class (share_by), but the data "
                f"{suite.data['name']!r} have no labels",
                fix="set share_by='image', or use labelled data",
            )
        for student in suite.students:
            for task in suite.tasks:
                check_task(student, task)
                check_task_data(suite.data, task)
                check_recipe(task)
                tests_on(task, suite.data["name"])  # refuses what is no list of names
            trained_on(suite.teachers[student["name"]])
            check_stated(suite.teachers[student["name"]] or {})
            for method in arms_of(suite, student):
                check_pair(suite, student, method, suite.teachers[student["name"]])
                for share in self.shares(method):
                    for p, t in self.pairs(method):
                        self.cell(prepare, student, method, share, p, t)
        if not self.plan.cells:
            raise KdepError(
                f"the suite {suite.name!r} contains no run: none of its methods applies to one of "
                "its students",
                fix="correct `students` in its methods",
            )
        return self.plan

    def shares(self, method: Json) -> list[float]:
        """An arm that takes no training step saw no share: planned once, beside the largest."""
        return self.suite.shares if trains(method) else [max(self.suite.shares)]

    def share(self, share: float) -> Json:
        """What a stage is told of its share; how it is drawn only where that is per class."""
        told: Json = {"share": share, "share_seed": self.suite.seeds.share}
        drawn = self.suite.share_by == "class" and share < 1
        return told | ({"share_by": "class"} if drawn else {})

    def pairs(self, method: Json) -> list[tuple[int, int]]:
        seeds = self.suite.seeds
        if seeds.pairs == "diagonal":
            return list(zip(seeds.pretrain, seeds.transfer, strict=True))
        # Given weights are the same for every pre-training seed: run them with the first only.
        first = seeds.pretrain[:1] if method.get("weights") is not None else seeds.pretrain
        return [(p, t) for p in first for t in seeds.transfer]

    def views(self, prepare: str, student: Json) -> str:
        suite, px = self.suite, student["input_px"]
        spec = {
            "views": suite.budget.views,
            "px": px,
            "seed": suite.seeds.views,
            "scale": suite.views.scale,
            "ratio": suite.views.ratio,
        }
        name = f"{suite.data['name']}.{px}px.x{suite.budget.views}"
        return self.add("views", name, spec, {"prepare": prepare})

    def teaching(
        self,
        prepare: str,
        views: str,
        student: Json,
        method: Json,
        share: float,
        base: Json | None,
        upstream: Mapping[str, str] | None,
    ) -> dict[str, str]:
        """The cache and, for a method with alignment, the basis: role -> stage id.

        A live teacher needs the images themselves, and a cache only to fit an alignment. An
        assistant (`upstream`: its chain) is always read from its cache.
        """
        teacher = assistant_of(method) or base
        assert teacher is not None
        live = self.live and upstream is None
        if live and not method.get("align"):
            return {"images": prepare}
        spec: Json = {"teacher": without(teacher, PROSE)}
        outputs = [] if live else self.outputs(teacher, student["input_px"], method)
        if outputs:
            spec["outputs"] = outputs
        name, needs, most = teacher["name"], {"prepare": prepare, "views": views}, 1.0
        if set(outputs) - {"logits"}:
            most = max(self.suite.shares)
        if upstream is not None:
            most = share
            needs |= {"export": upstream["export"], "pretrain": upstream["pretrain"]}
        if most < 1:
            # Maps are large and an assistant serves few arms: only rows that some arm reads.
            spec |= self.share(most)
        cache = self.add("cache", f"{name}{_share(most)}", spec, needs)
        if not method.get("align"):
            return {"cache": cache}
        spec = {
            "align": method["align"],
            "width": student["width"],
            **self.share(share),
        }
        kind = str(method["align"].get("type", "align")).rpartition(".")[2]
        name = f"{teacher['name']}.{kind}{student['width']}"
        needs = {"views": views, "cache": cache}
        if "share_by" in spec:
            needs["prepare"] = prepare
        align = self.add("align", f"{name}{_share(share)}", spec, needs)
        return {"cache": cache, "align": align, **({"images": prepare} if live else {})}

    def outputs(self, teacher: Json, px: int, method: Json) -> list[str]:
        """What the cache that `method` reads holds beside the pooled feature.

        Logits are small and stored for all arms of a teacher, unless they follow from the pooled
        feature. Maps and tokens are large: the arms that read them share a cache of their own, so
        that they touch no finished stage of the others; the teacher then runs once more.
        """

        def stored(m: Json) -> set[str]:
            found = method_needs(m) & STORED
            if teacher.get("card", {}).get("logits_from_pooled"):
                found.discard("logits")
            maps = levels_of(m.get("objective"))
            if "maps" in found and maps:
                found = (found - {"maps"}) | {f"maps.{name}" for name in maps}
            return found

        found = stored(method)
        large = bool(found - {"logits"})
        for student in self.suite.students:
            if student["input_px"] == px:
                for m in self.suite.methods:
                    cache_teacher = assistant_of(m) or self.suite.teachers[student["name"]]
                    if cache_teacher == teacher and student["name"] in (
                        m.get("students") or [student["name"]]
                    ):
                        found |= stored(m) if large else stored(m) & {"logits"}
        return sorted(found)

    def arm(
        self,
        prepare: str,
        student: Json,
        method: Json,
        share: float,
        p: int,
        t: int,
        base: Json | None,
        epochs: float | None = None,
    ) -> tuple[dict[str, str], str]:
        """(chain of stages up to the export, label) of one arm at one pair of seeds.

        Its teacher is `base`, or an arm of its own, whose stages are in the chain as "teacher.*".
        """
        suite, chain = self.suite, {"prepare": prepare}
        needs: dict[str, str] = {}
        spec: Json = {
            "student": self.config(student),
            "method": self.config(method, method=True),
            "seed": p,
        }
        if trains(method):
            chain["views"] = needs["views"] = self.views(prepare, student)
            spec.update(self.share(share))
            spec["budget"] = self.budget_of(epochs or suite.budget.epochs, share == 1, method)
            if "labels" in method_needs(method) or "share_by" in spec:
                needs["prepare"] = prepare
            if uses_teacher(method):
                told, upstream = method.get("teacher"), None
                if told is not None:
                    upstream, _ = self.arm(
                        prepare, told["student"], told["method"], share, p, t, base, told["epochs"]
                    )
                    chain.update(
                        {f"teacher.{k}": v for k, v in upstream.items() if k not in _COMMON}
                    )
                more = self.teaching(
                    prepare, needs["views"], student, method, share, base, upstream
                )
                needs.update(more)
                chain.update({k: v for k, v in more.items() if k != "images"})
                if "images" in more:
                    assert base is not None
                    spec["teacher"] = without(base, PROSE)
        elif method.get("weights") is not None:
            spec["seed"] = 0
        else:
            # Another random initialisation for every pair of seeds; equal to the transfer seed
            # where the suite has the one pre-training seed 0.
            spec["seed"] = p * SEED_STEP + t if suite.seeds.pairs == "product" else t
        cut = "" if epochs is None else f".{epochs:g}ep"
        part = _share(share) if trains(method) else ""  # an untrained arm is that of any share
        label = f"{student['name']}.{method['name']}{cut}{part}"
        chain["pretrain"] = self.add("pretrain", f"{label}.s{spec['seed']}", spec, needs)
        chain["export"] = self.add(
            "export",
            f"{label}.s{spec['seed']}",
            {"student": self.config(student)},
            {"pretrain": chain["pretrain"]},
            about=model_card.about(
                method,
                student,
                teacher_config_for(method, base),
                suite.data["name"],
                share,
                spec["seed"],
            ),
        )
        return chain, f"{label}.s{spec['seed']}"

    def cell(self, prepare: str, student: Json, method: Json, share: float, p: int, t: int) -> None:
        base = self.suite.teachers[student["name"]]
        chain, label = self.arm(prepare, student, method, share, p, t, base)
        for task in self.suite.tasks:
            stage = self.add(
                "transfer",
                f"{task['name']}.{label}-{t}",
                {
                    "task": self.config(task),
                    "student": self.config(student),
                    "seed": t,
                },
                {"prepare": prepare, "export": chain["export"]},
            )
            self.plan.cells.append(
                Cell(
                    method=method,
                    student=student,
                    teacher=teacher_config_for(method, base),
                    task=task,
                    share=share,
                    pretrain_seed=p,
                    transfer_seed=t,
                    chain={**chain, "transfer": stage},
                )
            )


def _share(share: float) -> str:
    return "" if share == 1 else f".{share:g}"


def check_size(suite: Suite) -> None:
    """Refuses a suite of more cells than MOST_CELLS, before any is made, and seeds that collide."""
    cells = 0
    for part in suite.variants or [suite]:
        seeds = part.seeds
        pairs = len(seeds.pretrain) * (len(seeds.transfer) if seeds.pairs == "product" else 1)
        for student in part.students:
            for method in arms_of(part, student):
                given = method.get("weights") is not None and seeds.pairs == "product"
                shares = len(part.shares) if trains(method) else 1
                cells += (len(seeds.transfer) if given else pairs) * shares * len(part.tasks)
    if cells > MOST_CELLS:
        raise KdepError(
            f"the suite {suite.name!r} has {cells:,} transfer runs",
            expected=f"at most {MOST_CELLS:,}",
            fix="use fewer seeds, or seeds.pairs='diagonal' (the i-th pre-training seed with the "
            "i-th transfer seed, instead of all pairs)",
        )
    _check_untrained_seeds(suite)


def _check_untrained_seeds(suite: Suite) -> None:
    """Refuses seeds of which two pairs give an untrained arm the same random weights."""
    untrained = any(not trains(m) and m.get("weights") is None for m in suite.methods)
    if not untrained or suite.seeds.pairs != "product":
        return
    first: dict[int, tuple[int, int]] = {}
    for p in suite.seeds.pretrain:
        for t in suite.seeds.transfer:
            other = first.setdefault(p * SEED_STEP + t, (p, t))
            if other != (p, t):
                raise KdepError(
                    f"two seed pairs (pre-training, transfer) of the suite {suite.name!r}, "
                    f"{other} and {(p, t)}, give an untrained student the same random weights",
                    expected=f"pairs with different values of {SEED_STEP} * pre-training seed + "
                    "transfer seed",
                    fix=f"use transfer seeds below {SEED_STEP}",
                )


def check_names(plan: Plan) -> None:
    """Refuses two arms that tables could not tell apart: KdepError.

    The variants of a suite may each have a method or a teacher of one name with other contents.
    """
    first: dict[tuple[Any, ...], Cell] = {}
    for cell in plan.cells:
        budget = plan.stages[cell.chain["pretrain"]].spec.get("budget") or {}
        teacher = "" if cell.teacher is None else cell.teacher["name"]
        key = (cell.student["name"], cell.method["name"], teacher, cell.share)
        key += (budget.get("epochs"), budget.get("epochs_over"), cell.task["name"])
        other = first.setdefault((*key, cell.pretrain_seed, cell.transfer_seed), cell)
        if other.id != cell.id:
            taught = f" with the teacher {teacher!r}" if teacher else ""
            raise KdepError(
                f"two variants of the suite {plan.name!r} run different methods under one name, "
                f"{cell.method['name']!r}{taught}",
                fix="give one of them its own `name`: dict(base=..., name=...)",
            )


def build_plan(suite: Suite, kinds: Mapping[str, StageKind] = KINDS) -> Plan:
    """The whole graph of a suite, every shared stage once, upstream first.

    Raises:
        KdepError: a method that cannot work with its student, teacher or data; nothing to run.
    """
    plan = Plan(suite.name)
    check_size(suite)
    for variant in suite.variants or [suite]:
        _Builder(variant, kinds, plan).build()
    check_names(plan)
    first: dict[str, Cell] = {}  # equal in several variants, as scratch is: one run, one record
    for cell in plan.cells:
        first.setdefault(cell.id, cell)
    plan.cells[:] = first.values()
    if suite.claims:
        budgets = {i: s.spec.get("budget") for i, s in plan.stages.items()}
        arms = {claim_checks.arm(c, budgets[c.chain["pretrain"]]) for c in plan.cells}
        claim_checks.check_claims(suite.claims, arms, {t["family"] for t in suite.tasks})
    return plan
