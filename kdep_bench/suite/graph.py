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
        kind: key of `kinds.KINDS`.
        name: readable part of the id.
        spec: what its function gets; JSON-able.
        needs: role -> id of the upstream stage.
        version: of the kind; raising it changes the id, so that the stage runs again.
        cpus: cores per process; 0 = all of the machine.
        gpus: GPUs per node, where the machine has any.
        timeout: seconds.
        source_paths: parts of the package (paths below kdep_bench/) whose source it runs.
        function: 'module:function'.
        resumable: an interrupted attempt leaves its files for the next one.
        cost: estimated seconds.
        nodes: machines it spans on a cluster; one elsewhere.
        processes: processes per node; more than one in all is DDP under torchrun.
        memory: MiB per node, requested from a cluster.
        time: seconds a cluster's job may last; 0 = `timeout`.
        trackers: configs of the Visualizer backends its Runners also log to.
        about: description of its result for readers, passed to its function as `spec["about"]`.
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
    source_paths: tuple[str, ...] = ()
    nodes: int = 1
    processes: int = 1
    memory: int = 0
    time: float = 0.0
    trackers: Sequence[Json] = ()
    about: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransferRun:
    """One transfer run of the suite; it has one Record. `chain`: role -> stage id."""

    method: Json
    student: Json
    teacher: Json | None
    task: Json
    fraction: float
    pretrain_seed: int
    transfer_seed: int
    chain: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.chain["transfer"]


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """One probe of one exported backbone; it has one probe record. `chain`: role -> stage id.

    `seed`: of the pre-training, or of the random weights of an untrained backbone.
    """

    probe: Json
    method: Json
    student: Json
    teacher: Json | None
    fraction: float
    seed: int
    chain: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.chain["probe"]


@dataclass(frozen=True)
class Plan:
    """Stages by id, upstream first, and the transfer runs and probes that they serve."""

    name: str
    stages: dict[str, Stage] = field(default_factory=dict)
    runs: list[TransferRun] = field(default_factory=list)
    probes: list[ProbeRun] = field(default_factory=list)
    # id of a dict -> (that dict, its canonical text): a recipe is in thousands of specs.
    texts: dict[int, tuple[Json, str]] = field(default_factory=dict, repr=False)

    def text(self, value: Any) -> str:
        """`canonical_json(value)`, cached for dicts, which must not change afterwards."""
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
        """`ids` and all stages that they need, directly or indirectly."""
        seen: set[str] = set()
        todo = list(ids)
        while todo:
            current = todo.pop()
            if current not in seen:
                seen.add(current)
                todo.extend(self.stages[current].needs.values())
        return seen

    def downstream(self, ids: Iterable[str]) -> set[str]:
        """`ids` and all stages that need them, directly or indirectly."""
        consumers, seen, todo = self.consumers(), set[str](), list(ids)
        while todo:
            current = todo.pop()
            if current not in seen:
                seen.add(current)
                todo.extend(consumers[current])
        return seen


def make_stage_id(
    plan: Plan, kind: str, name: str, version: int, spec: Json, needs: Mapping[str, str]
) -> str:
    """`kind-name-hash12`; the name is truncated so that the id has at most 110 characters."""
    # The text of canonical_json([kind, version, spec, needs]), put together from cached parts.
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
    """Adds a stage unless the plan has an equal one; returns its id. `needs` must be in the plan.

    `function` overrides the kind's; `runtime` (cpus, timeout, gpus, processes, nodes, memory, time,
    cost, trackers, about) is not part of the id. KdepError: several processes for a kind that runs
    as one.
    """
    stage_kind = kinds[kind]
    needs = dict(needs or {})
    if function is not None and function != stage_kind.function:
        spec = {**spec, "type": function}
    stage_id = make_stage_id(plan, kind, name, stage_kind.version, spec, needs)
    if stage_id not in plan.stages:
        for up in needs.values():
            if up not in plan.stages:
                raise KeyError(f"{stage_id} needs {up}, which is not planned")
        plan.stages[stage_id] = Stage(
            id=stage_id,
            kind=kind,
            name=name,
            spec=spec,
            needs=needs,
            version=stage_kind.version,
            function=function or stage_kind.function,
            resumable=stage_kind.resumable,
            source_paths=stage_kind.source_paths,
            **_resources(kind, stage_kind, runtime),
        )
    return stage_id


def _resources(kind: str, stage_kind: StageKind, runtime: Mapping[str, Any]) -> Json:
    """The kind's defaults, replaced by what the suite sets; None is not set."""
    overrides = {k: v for k, v in runtime.items() if v is not None}
    gpus = overrides.get("gpus", int(stage_kind.gpu))
    processes, nodes = overrides.get("processes", max(1, gpus)), overrides.get("nodes", 1)
    if processes * nodes > 1 and not stage_kind.ddp:
        raise KdepError(
            f"the suite's runtime sets {processes * nodes} processes per {kind} stage, but this "
            "kind runs in one process",
            fix=f"remove {kind!r} from runtime.gpus, .processes and .nodes",
        )
    defaults = {
        "cpus": stage_kind.cpus,
        "timeout": stage_kind.timeout,
        "gpus": gpus,
        "processes": processes,
        "nodes": nodes,
        "memory": stage_kind.memory * processes,
        "cost": stage_kind.cost,
    }
    return defaults | overrides
