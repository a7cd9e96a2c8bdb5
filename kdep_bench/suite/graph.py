"""The graph of a suite: stages by id, and the transfer runs that they serve.

A stage's id is its kind, its name and a hash of (kind, kind version, spec, upstream ids).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, safe_name, text_hash
from kdep_bench.suite.kinds import KINDS, StageKind
from kdep_bench.suite.schema import Json


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
