"""The graph of a suite: its stages, and the transfer runs and probes that need them.

A stage's id is its kind, its name and a hash of (kind, kind version, spec, upstream ids). The spec
is the dict of settings that the stage function gets. The chain of a run is its own stage and the
stages that it needs, directly or indirectly.
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
        id: `<kind>-<name>-<hash of 12 digits>`, also the name of its directory.
        kind: key of `kinds.KINDS`.
        name: readable part of the id.
        spec: settings that its function gets, as plain JSON.
        needs: role, such as "views" -> id of the upstream stage.
        version: version of the kind; raising it changes the id, so that the stage runs again.
        function: 'module:function'.
        cpus: cores per process; 0: all cores of the machine.
        gpus: GPUs per node, if the machine has any.
        timeout: seconds after which the stage is stopped.
        resumable: whether a new attempt continues from the files of an interrupted one.
        cost: estimated seconds.
        source_paths: files and folders below kdep_bench/ whose source code it runs.
        nodes: machines that it runs on in a cluster; 1 elsewhere.
        processes: processes per node; with more than one in total it runs as DDP with torchrun.
        memory: MiB per node, requested from a cluster.
        time: seconds that one cluster job may last; 0: as long as `timeout`.
        trackers: configs of experiment trackers (mmengine's Visualizer backends).
        about: description of its result, passed to its function as `spec["about"]`; not in the id.
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
    """One transfer run of the suite; its result is one record.

    `chain`: role -> id of every stage that it needs, and of its own.
    """

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
    """One probe of one exported backbone; its result is one probe record.

    Attributes:
        seed: seed of the pre-training, or of the random weights of an untrained backbone.
        chain: role -> id of every stage that it needs, and of its own.
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
    """The stages of a suite by id, upstream stages first, and its transfer runs and probes."""

    name: str
    stages: dict[str, Stage] = field(default_factory=dict)
    runs: list[TransferRun] = field(default_factory=list)
    probes: list[ProbeRun] = field(default_factory=list)
    # id() of a dict -> (the dict, its canonical JSON). A cache: a recipe is in thousands of specs.
    texts: dict[int, tuple[Json, str]] = field(default_factory=dict, repr=False)

    def text(self, value: Any) -> str:
        """`canonical_json(value)`, cached for dicts, which must not change afterwards."""
        if not isinstance(value, dict):
            return canonical_json(value)
        if id(value) not in self.texts:
            self.texts[id(value)] = value, canonical_json(value)
        return self.texts[id(value)][1]

    def consumers(self) -> dict[str, list[str]]:
        """Stage id -> ids of the stages that directly depend on it."""
        out: dict[str, list[str]] = {i: [] for i in self.stages}
        for stage in self.stages.values():
            for upstream_id in set(stage.needs.values()):
                out[upstream_id].append(stage.id)
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
    """The id of a stage; its name is truncated so that the id has at most 110 characters."""
    # Equal to canonical_json([kind, version, spec, needs]), but built from cached parts.
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
    resources_of: str | None = None,
    **runtime: Any,
) -> str:
    """Adds a stage to the plan, unless the plan has an equal stage; returns the stage's id.

    Args:
        plan: the plan, which is changed.
        kind: kind of the stage.
        name: readable part of its id.
        spec: settings for its function.
        needs: role -> id of an upstream stage, which must be in the plan.
        kinds: the stage kinds.
        function: replaces the function of the kind; part of the id.
        resources_of: the kind whose resources and source paths it has, if not its own.
        runtime: resources and other attributes of Stage (cpus, timeout, gpus, processes, nodes,
            memory, time, cost, trackers, about); not part of the id.

    Raises:
        KdepError: several processes are set for a kind that runs in one process.
        KeyError: a stage of `needs` is not in the plan.
    """
    stage_kind, resources = kinds[kind], kinds[resources_of or kind]
    needs = dict(needs or {})
    if function is not None and function != stage_kind.function:
        spec = {**spec, "type": function}
    stage_id = make_stage_id(plan, kind, name, stage_kind.version, spec, needs)
    if stage_id not in plan.stages:
        for upstream_id in needs.values():
            if upstream_id not in plan.stages:
                raise KeyError(f"{stage_id} needs {upstream_id}, which is not planned")
        plan.stages[stage_id] = Stage(
            id=stage_id,
            kind=kind,
            name=name,
            spec=spec,
            needs=needs,
            version=stage_kind.version,
            function=function or stage_kind.function,
            resumable=resources.resumable,
            source_paths=resources.source_paths,
            **_resources(resources_of or kind, resources, runtime),
        )
    return stage_id


def _resources(kind: str, stage_kind: StageKind, runtime: Mapping[str, Any]) -> Json:
    """The resources of a stage: those in `runtime` that are not None, otherwise the kind's."""
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
