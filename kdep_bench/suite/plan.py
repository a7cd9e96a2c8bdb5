"""Suite -> graph of stages. Pure arithmetic on configs: nothing is run and no file is read.

prepare -> views -> cache -> align -> pretrain -> export -> transfer. A stage's id is its kind, its
name and a hash of (kind, kind version, spec, upstream ids): whatever changes one of these changes
the id of that stage and of all that follow, and of nothing else. So the transform of a method
(T of PTS) belongs to `pretrain`, not to `align`, and recipes that only `transfer` reads are in no
earlier spec. Arms share every stage whose id is equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdep_bench import cards, trackers
from kdep_bench.data.normalisation import check_recipe, check_stated
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import canonical_json, safe_name, text_hash
from kdep_bench.objectives.levels import levels_of
from kdep_bench.suite import testable
from kdep_bench.suite.arguments import check_optimizer
from kdep_bench.suite.arms import PROSE, arms_of, assistant_of, teacher_config_for, trains, without
from kdep_bench.suite.config import Json, Suite, merged, method_needs, uses_teacher
from kdep_bench.suite.data_config import check_data_plan
from kdep_bench.suite.kinds import KINDS, StageKind
from kdep_bench.suite.known import has_labels
from kdep_bench.suite.overlap import tests_on, trained_on
from kdep_bench.suite.pairs import check_pair, check_task, check_task_data

# Keys of a method that the planner itself consumes.
_PLANNING = {"align", "family", "label_policy", "students", "needs", "teacher", "optimizer"}
# What a cache holds beside the pooled feature, where a method of the suite reads it.
STORED = {"logits", "maps", "tokens"}
_COMMON = {"prepare", "views"}  # stages that an arm and its teacher share
SEED_STEP = 1000  # keeps the scratch arm's initialisation seeds of different pairs apart
MOST_CELLS = 20_000  # of a suite; planning as many takes some 10 s


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a plan.

    Attributes:
        id: `kind-name-hash12`, also its directory's name.
        spec: what its function gets; JSON-able.
        needs: role -> id of the upstream stage.
        cpus: cores a process of it is given; 0 = all of the machine.
        gpus: GPUs a node it is given where the machine has any.
        timeout: seconds.
        function: 'module:function'.
        resumable: keeps its leftovers for its next try.
        cost: guessed seconds.
        nodes: machines it spans on a cluster; one elsewhere.
        processes: processes a node; more than one in all is DDP under torchrun.
        memory: MiB a node, asked of a cluster.
        time: seconds a cluster's job may last; 0 = `timeout`.
        trackers: configs of the Visualizer backends its Runners also log to.
        about: what people are told of its outcome, given to its function as `spec["about"]`.
    """

    id: str
    kind: str
    name: str
    spec: Json
    needs: Mapping[str, str]
    version: int
    function: str
    cpus: int = 1
    gpus: int = 0
    timeout: float = 43200.0
    resumable: bool = False
    cost: float = 60.0
    rooms: tuple[str, ...] = ()
    nodes: int = 1
    processes: int = 1
    memory: int = 0
    time: float = 0.0
    trackers: Sequence[Json] = ()
    about: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """One transfer run of the suite: what its Record is about. `chain`: kind -> stage id."""

    method: Json
    student: Json
    teacher: Json | None
    task: Json
    share: float
    pretrain_seed: int
    transfer_seed: int
    chain: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.chain["transfer"]


@dataclass(frozen=True)
class Plan:
    """Stages by id, upstream first, and the cells they serve."""

    name: str
    stages: dict[str, Stage] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    # id of a dict -> (that dict, its canonical text): a recipe is in thousands of specs.
    texts: dict[int, tuple[Json, str]] = field(default_factory=dict, repr=False)

    def text(self, value: Any) -> str:
        """`canonical_json(value)`, remembered for dicts, which must not change any more."""
        if not isinstance(value, dict):
            return canonical_json(value)
        if id(value) not in self.texts:
            self.texts[id(value)] = value, canonical_json(value)
        return self.texts[id(value)][1]

    def consumers(self) -> dict[str, list[str]]:
        """Stage id -> ids of the stages that need it directly."""
        out: dict[str, list[str]] = {i: [] for i in self.stages}
        for stage in self.stages.values():
            for up in set(stage.needs.values()):
                out[up].append(stage.id)
        return out

    def upstream(self, ids: Iterable[str]) -> set[str]:
        """`ids` and everything they need, directly or not."""
        seen: set[str] = set()
        todo = list(ids)
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo.extend(self.stages[one].needs.values())
        return seen

    def downstream(self, ids: Iterable[str]) -> set[str]:
        """`ids` and everything that needs them, directly or not."""
        consumers, seen, todo = self.consumers(), set[str](), list(ids)
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo.extend(consumers[one])
        return seen


def stage_id(
    plan: Plan, kind: str, name: str, version: int, spec: Json, needs: Mapping[str, str]
) -> str:
    """`kind-name-hash12`; the name is cut where the whole would pass 110 characters."""
    # The text of canonical_json([kind, version, spec, needs]), put together from remembered parts.
    inner = ",".join(f"{canonical_json(k)}:{plan.text(spec[k])}" for k in sorted(spec))
    text = f"[{canonical_json(kind)},{version},{{{inner}}},{canonical_json(dict(needs))}]"
    return safe_name(f"{kind}-{name[: 96 - len(kind)]}-{text_hash(text)}", "stage id")


def add_stage(
    plan: Plan,
    kind: str,
    name: str,
    spec: Json,
    needs: Mapping[str, str] | None = None,
    *,
    kinds: Mapping[str, StageKind] = KINDS,
    function: str | None = None,
    **runtime: Any,
) -> str:
    """Adds a stage unless an equal one is there; returns its id. `needs` must be planned already.

    `function` overrides the kind's; `runtime` (cpus, timeout, gpus, processes, nodes, memory, time,
    cost, trackers, about) is no part of the id. KdepError: several processes for a kind that runs
    as one.
    """
    how = kinds[kind]
    needs = dict(needs or {})
    if function is not None and function != how.function:
        spec = {**spec, "type": function}
    one = stage_id(plan, kind, name, how.version, spec, needs)
    if one not in plan.stages:
        for up in needs.values():
            if up not in plan.stages:
                raise KeyError(f"{one} needs {up}, which is not planned")
        plan.stages[one] = Stage(
            id=one,
            kind=kind,
            name=name,
            spec=spec,
            needs=needs,
            version=how.version,
            function=function or how.function,
            resumable=how.resumable,
            rooms=how.rooms,
            **_resources(kind, how, runtime),
        )
    return one


def _resources(kind: str, how: StageKind, runtime: Mapping[str, Any]) -> Json:
    """The kind's defaults under what the suite says; None says nothing."""
    said = {k: v for k, v in runtime.items() if v is not None}
    gpus = said.get("gpus", int(how.gpu))
    processes, nodes = said.get("processes", max(1, gpus)), said.get("nodes", 1)
    if processes * nodes > 1 and not how.ddp:
        raise KdepError(
            f"the suite's runtime sets {processes * nodes} processes per {kind} stage, but this "
            "kind runs in one process",
            fix=f"remove {kind!r} from runtime.gpus, .processes and .nodes",
        )
    given = {
        "cpus": how.cpus,
        "timeout": how.timeout,
        "gpus": gpus,
        "processes": processes,
        "nodes": nodes,
        "memory": how.memory * processes,
        "cost": how.cost,
    }
    return given | said


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
            about=cards.about(
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
        arms = {testable.arm(c, budgets[c.chain["pretrain"]]) for c in plan.cells}
        testable.check_claims(suite.claims, arms, {t["family"] for t in suite.tasks})
    return plan
