"""Builds the plan of a suite, a graph of stages, from its config; reads no data and runs nothing.

The stages follow each other: prepare -> views -> cache -> align -> pretrain -> export -> transfer;
with probes also export -> features -> probe (see `probes`).

A stage's id is its kind, its name and a hash of (kind, kind version, spec, upstream ids). If one of
these changes, the ids of the stage and of all stages that depend on it change, and no others.
Therefore a setting is only in the spec of the first stage that reads it: the transform of a method
(T of PTS) is in `pretrain`, not in `align`, and the recipe of a task is only in `transfer`. Methods
share the stages with equal ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdep_bench import trackers
from kdep_bench.data.normalisation import check_recipe, check_stated
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.files import canonical_json
from kdep_bench.objectives.levels import levels_of, top_classes
from kdep_bench.signatures import check_type, class_value, resolve_alias
from kdep_bench.suite import claim_checks
from kdep_bench.suite.arguments import check_optimizer
from kdep_bench.suite.config import merged
from kdep_bench.suite.data_config import check_data_plan
from kdep_bench.suite.factors import grid_of
from kdep_bench.suite.graph import Plan, TransferRun, add_stage
from kdep_bench.suite.kinds import KINDS, StageKind
from kdep_bench.suite.known_data import has_labels, prepared_spec
from kdep_bench.suite.methods import (
    DESCRIPTION_KEYS,
    budget_label,
    methods_for,
    role_teachers,
    row_name,
    tasks_for,
    trains,
    tuned_teacher,
    without,
)
from kdep_bench.suite.pairs import check_black_box, check_pair, check_task, check_task_data
from kdep_bench.suite.probes import ProbePlanner, check_probe, check_probed
from kdep_bench.suite.schema import Json, Suite, labels_of_run, method_needs
from kdep_bench.suite.teachers import RoleTeacher, teacher_config_for, teachers_by_role
from kdep_bench.suite.train_test_overlap import tests_on, trained_on
from kdep_bench.suite.transfer_rules import check_transfer
from kdep_bench.transfer import model_card

# Keys of a method that are not in the `method` of the pretrain spec: the planner reads them, and
# puts some elsewhere, such as `align` into the spec of align and `optimizer` into the `budget`.
_PLANNING = {
    *("align", "family", "label_policy", "students", "needs", "teacher", "teachers", "optimizer"),
    *("transfer", "teacher_source", "stored_maps", "synthesis"),
}
# Keys of a method's `transfer` that are not in the `transfer` of the transfer spec: the planner
# reads them, or they only describe the method.
_TRANSFER_PLANNING = {"name", "family", "teacher", "tasks"}
# Teacher outputs that a cache can contain in addition to the pooled feature.
STORED = {"logits", "maps", "tokens", "probabilities"}
# Name of the stored maps in a cache's `outputs`, by the method's `stored_maps`.
MAPS_OUTPUT = {"float16": "maps", "int8": "int8_maps"}
# Kinds of the stages that a student and its intermediate teacher share.
_COMMON = {"prepare", "views"}
# Seed of the random weights of an untrained student, unless each pre-training seed has one transfer
# seed: SEED_STEP * pre-training seed + transfer seed.
# `_check_untrained_seeds` refuses suites in which two pairs of seeds give the same value.
SEED_STEP = 1000
MAX_RUNS = 20_000  # largest number of transfer runs of a suite; planning them takes about 10 s


class _Builder:
    """Adds the stages of one suite to a plan."""

    def __init__(self, suite: Suite, kinds: Mapping[str, StageKind], plan: Plan) -> None:
        self.suite, self.kinds, self.plan = suite, kinds, plan
        # id() of a config -> its spec. The same dict is reused, so that its JSON is made only once.
        self.config_specs: dict[int, Json] = {}
        self.configs: list[Json] = []  # kept, so that no other config gets the same id()
        # A cache, see `budget_spec`.
        self.budgets: dict[tuple[float, bool, str, int | None], Json] = {}
        self.is_live = suite.budget.teacher == "live"
        self.faults = Faults(by_fix=True)  # many methods can have the same fault
        with self.faults.collect():
            check_optimizer(suite.budget.optimizer, "the optimizer of the budget")
        if suite.budget.batch % suite.budget.accumulate:
            self.faults.add(
                KdepError(
                    f"budget.batch = {suite.budget.batch} cannot be split into "
                    f"{suite.budget.accumulate} micro-batches of equal size",
                    fix="make budget.batch a multiple of budget.accumulate",
                )
            )
        self.runtime: dict[str, dict[str, Any]] = suite.runtime.model_dump(
            exclude={"timed", "trackers"}
        )
        for setting, per_kind in self.runtime.items():
            for kind in set(per_kind) - set(kinds):
                self.faults.add(
                    unknown_name("stage kind", kind, set(kinds), place=f"runtime.{setting}")
                )

    def config_spec(self, config: Json, is_method: bool = False) -> Json:
        """The part of a student, task or method config that is in the spec of stages."""
        if id(config) not in self.config_specs:
            spec = without(config, DESCRIPTION_KEYS | (_PLANNING if is_method else set()))
            self.configs.append(config)
            # A method that states these default values has the same stage ids as one that does not.
            self.config_specs[id(config)] = (
                {"labels_used": False, "transform": None, **spec} if is_method else spec
            )
        return self.config_specs[id(config)]

    def budget_spec(
        self, epochs: float, uses_full_pool: bool, method: Json, batch: int | None = None
    ) -> Json:
        """Spec of the budget for a pre-training of `method` over `epochs`.

        `batch` replaces the budget's batch. `uses_full_pool`: whether the pre-training uses all
        images. Then `epochs_over` (an epoch is the data fraction or all images) has no effect; it
        is left out so that the stage ids do not depend on it.
        """
        overrides = method.get("optimizer") or {}
        key = epochs, uses_full_pool, canonical_json(overrides), batch
        if key not in self.budgets:
            spec = {**self.suite.budget.spec(), "epochs": epochs}
            if batch is not None:
                spec["batch"] = batch
            if overrides:
                where = f"optimizer of method {method['name']!r}"
                spec["optimizer"] = merged(spec["optimizer"], overrides, where)
            self.budgets[key] = without(spec, {"epochs_over"} if uses_full_pool else set())
        return self.budgets[key]

    def add(
        self,
        kind: str,
        name: str,
        spec: Json,
        needs: Mapping[str, str],
        function: Any = None,
        about: Json | None = None,
        resources_of: str | None = None,
    ) -> str:
        """Adds a stage with the suite's resources; returns its id. See `add_stage`."""
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
            resources_of=resources_of,
            **{
                setting: per_kind.get(resources_of or kind)
                for setting, per_kind in self.runtime.items()
            },
        )

    def build(self) -> Plan:
        """Checks the suite and adds all its stages and runs; returns the plan."""
        suite = self.suite
        prepare_function = suite.data.get("type")
        if prepare_function is not None and ":" not in prepare_function:
            prepare_function = ":".join(prepare_function.rsplit(".", 1))
        prepare = self.add(
            "prepare",
            suite.data["name"],
            prepared_spec(suite.data),
            {},
            prepare_function,
        )
        self.check_data()
        self.probes = ProbePlanner(
            suite,
            self.plan,
            self.add,
            lambda student: self.views(prepare, student),
            lambda student: self.suite_cache(prepare, student),
        )
        for student in suite.students:
            with self.faults.collect():
                self.check_student(student)
        is_valid = not len(self.faults)
        pairs = [(s, m) for s in suite.students for m in methods_for(suite, s)]
        for student, method in pairs:
            with self.faults.collect():
                check_pair(suite, student, method, suite.teachers[student["name"]])
                if is_valid:  # these checks rely on valid data and tasks
                    check_transfer(suite, student, method, suite.teachers[student["name"]])
        # Stops here if a method is invalid: a teacher's cache has the outputs that all methods
        # read, so the stages of each method depend on the others.
        self.faults.raise_any(f"the suite {suite.name!r}")
        for student, method in pairs:
            with self.faults.collect():
                self.add_method(prepare, student, method)
        self.faults.raise_any(f"the suite {suite.name!r}")
        if not any(stage.kind == "export" for stage in self.plan.stages.values()):
            raise KdepError(
                f"the suite {suite.name!r} contains no run, because none of its methods supports "
                "its students",
                fix="correct `students` in the method configs, or choose other students",
            )
        return self.plan

    def add_method(self, prepare: str, student: Json, method: Json) -> None:
        """Adds the runs of a method on a student."""
        for fraction in self.fractions(method):
            for pretrain_seed, transfer_seed in self.pairs(method):
                self.add_runs(prepare, student, method, fraction, pretrain_seed, transfer_seed)

    def check_data(self) -> None:
        """Checks that the data fit the tasks, the probes and `share_by`; adds faults.

        Raises:
            KdepError: the `type` of the data is unknown, or they do not fit the tasks.
        """
        suite = self.suite
        if (function := suite.data.get("type")) is not None:
            where = f"the data {suite.data['name']!r}"
            check_type({"type": function.replace(":", ".")}, where, kind_of_type="function")
        with self.faults.collect():
            check_data_plan(suite.data, suite.tasks)
        self.faults.raise_any(f"the suite {suite.name!r}")  # what follows relies on valid data
        for probe in suite.probes:
            with self.faults.collect():
                check_probe(suite.data, probe)
        draws_per_class = suite.share_by == "class" and min(suite.shares) < 1
        if draws_per_class and not has_labels(suite.data):
            self.faults.add(
                KdepError(
                    "the suite draws its data fractions per class (share_by), but the data "
                    f"{suite.data['name']!r} have no labels",
                    fix="set share_by='image', or use labelled data",
                )
            )

    def check_student(self, student: Json) -> None:
        """Adds a fault for each task that a student cannot do.

        Raises:
            KdepError: its teacher's card is invalid.
        """
        suite = self.suite
        for task in suite.tasks:
            with self.faults.collect():
                check_task(student, task)
                check_task_data(suite.data, task)
                check_recipe(task)
                tests_on(task, suite.data["name"])  # raises if the value is wrong
        trained_on(suite.teachers[student["name"]])
        check_stated(suite.teachers[student["name"]] or {})
        self.check_role_teachers()

    def check_role_teachers(self) -> None:
        """Checks the cards of the teachers that methods name by role."""
        for method in self.suite.methods:
            for teacher in role_teachers(method):
                trained_on(teacher)
                check_stated(teacher)

    def fractions(self, method: Json) -> list[float]:
        """Data fractions to plan; only the largest for a method without pre-training steps."""
        return self.suite.shares if trains(method) else [max(self.suite.shares)]

    def fraction_spec(self, fraction: float) -> Json:
        """Spec keys of a data fraction; `share_by` only if the images are drawn per class."""
        spec: Json = {"share": fraction, "share_seed": self.suite.seeds.share}
        draws_per_class = self.suite.share_by == "class" and fraction < 1
        return spec | ({"share_by": "class"} if draws_per_class else {})

    def pairs(self, method: Json) -> list[tuple[int, int]]:
        """Pairs (pre-training seed, transfer seed) that a method is run with."""
        seeds = self.suite.seeds
        if seeds.pairs == "diagonal":
            return list(zip(seeds.pretrain, seeds.transfer, strict=True))
        pretrain_seeds = seeds.pretrain
        if method.get("weights") is not None:
            pretrain_seeds = seeds.pretrain[:1]  # given weights do not depend on the seed
        return [(p, t) for p in pretrain_seeds for t in seeds.transfer]

    def views(self, prepare: str, student: Json) -> str:
        """Adds the stage of the fixed views at the student's input size; returns its id."""
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

    def synthesis(
        self, prepare: str, method: Json, fraction: float, suite_teacher: Json | None
    ) -> str:
        """Adds the stage that makes the images of a method from a data fraction; returns its id.

        It has the kind `prepare`, because it writes a pool, and the resources of `synthesis`.
        """
        assert suite_teacher is not None
        spec = {
            "synthesis": method["synthesis"],
            "teacher": without(suite_teacher, DESCRIPTION_KEYS),
            "seed": self.suite.seeds.views,
            **self.fraction_spec(fraction),
        }
        name = f"{self.suite.data['name']}.{method['name']}{_fraction_label(fraction)}"
        function = self.kinds["synthesis"].function
        return self.add(
            "prepare", name, spec, {"prepare": prepare}, function, resources_of="synthesis"
        )

    def teacher_stages(
        self,
        prepare: str,
        views: str,
        student: Json,
        role_teacher: RoleTeacher,
        fraction: float,
        upstream: Mapping[str, str] | None,
        largest_fraction: float | None = None,
    ) -> dict[str, str]:
        """Adds the stages of a teacher that a pre-training reads: cache and, if needed, align.

        A live teacher runs on the images, and needs a cache only to fit an alignment. An
        intermediate teacher is always read from its cache.

        Args:
            prepare: id of the stage of the data.
            views: id of the stage of the fixed views.
            student: config of the student.
            role_teacher: the teacher.
            fraction: data fraction of the pre-training.
            upstream: chain of an intermediate teacher (role -> stage id); None for others.
            largest_fraction: data fraction that a cache of large outputs stores; None: the largest
                of the suite.

        Returns:
            role -> stage id, with the roles "cache", "align" and "images" as far as needed.
        """
        teacher, method = role_teacher.config, role_teacher.method
        assert teacher is not None
        check_black_box(teacher, method_needs(method), f"method {method['name']!r}")
        is_live = (self.is_live or method.get("teacher_source") == "live") and upstream is None
        if is_live and not method.get("align"):
            return {"images": prepare}
        spec: Json = {"teacher": without(teacher, DESCRIPTION_KEYS)}
        outputs = [] if is_live else self.cache_outputs(teacher, student["input_px"], method)
        if outputs:
            spec["outputs"] = outputs
        if stores_probabilities(method) and not is_live and "pooled" not in method_needs(method):
            spec["pooled"] = False
        name, needs, cache_fraction = teacher["name"], {"prepare": prepare, "views": views}, 1.0
        if set(outputs) - {"logits"}:
            cache_fraction = largest_fraction or max(self.suite.shares)
        if upstream is not None:
            cache_fraction = fraction
            needs |= {"export": upstream["export"], "pretrain": upstream["pretrain"]}
        if cache_fraction < 1:
            # Maps are large: only the suite's largest data fraction is stored. An intermediate
            # teacher is pre-trained on one data fraction, and only that one is stored.
            spec |= self.fraction_spec(cache_fraction)
        cache = self.add("cache", f"{name}{_fraction_label(cache_fraction)}", spec, needs)
        if not method.get("align"):
            return {"cache": cache}
        spec = {
            "align": method["align"],
            "width": student["width"],
            **self.fraction_spec(fraction),
        }
        aligner = str(method["align"].get("type", "align")).rpartition(".")[2]
        name = f"{teacher['name']}.{aligner}{student['width']}"
        needs = {"views": views, "cache": cache}
        if "share_by" in spec:
            needs["prepare"] = prepare
        align = self.add("align", f"{name}{_fraction_label(fraction)}", spec, needs)
        return {"cache": cache, "align": align, **({"images": prepare} if is_live else {})}

    def suite_cache(self, prepare: str, student: Json) -> str:
        """Adds the cache with the pooled feature of the suite's teacher; returns its id."""
        # Takes the place of a method, and reads only the pooled feature.
        pooled_reader: Json = {"name": "probe", "needs": ["pooled"]}
        teacher, views = self.suite.teachers[student["name"]], self.views(prepare, student)
        check_black_box(teacher or {}, {"pooled"}, "a probe of the suite")
        suite_teacher = RoleTeacher("", pooled_reader, teacher)
        return self.teacher_stages(prepare, views, student, suite_teacher, 1.0, None)["cache"]

    def cache_outputs(self, teacher: Json, px: int, method: Json) -> list[str]:
        """Outputs, in addition to the pooled feature, in the teacher cache that `method` reads.

        Methods with the same teacher and input size share a cache. Logits are small and are stored
        for all of these methods, unless they can be computed from the pooled feature. Maps and
        tokens are large: the methods that read them share a second cache, so that the stages of the
        other methods keep their ids; the teacher then runs twice. Class probabilities (stored
        instead of all outputs, to keep the cache small) and int8 maps each have a cache of their
        own.
        """
        names = _stored_outputs(teacher, method)
        if stores_probabilities(method):
            return sorted(names)
        has_large_outputs = bool(names - {"logits"})
        for student in self.suite.students:
            if student["input_px"] != px:
                continue
            suite_teacher = self.suite.teachers[student["name"]]
            for suite_method in methods_for(self.suite, student):
                for role_teacher in teachers_by_role(suite_method, suite_teacher):
                    role_method = role_teacher.method
                    has_same_teacher = role_teacher.config == teacher
                    if has_same_teacher and _cache_group(role_method) == _cache_group(method):
                        outputs = _stored_outputs(teacher, role_method)
                        names |= outputs if has_large_outputs else outputs & {"logits"}
        return sorted(names)

    def add_pretraining(
        self,
        prepare: str,
        student: Json,
        method: Json,
        fraction: float,
        pretrain_seed: int,
        transfer_seed: int,
        suite_teacher: Json | None,
        epochs: float | None = None,
        batch: int | None = None,
    ) -> tuple[dict[str, str], str]:
        """Adds the stages up to the export of one method with one pair of seeds.

        The teacher is `suite_teacher`, or an intermediate teacher, which is pre-trained first. In
        the chain, stages of an intermediate teacher have names that begin with "teacher."; if the
        method has several teachers, the names of a teacher's stages begin with its role in the
        method, for example "large.cache" and "large.teacher.export" for the role "large".

        Args:
            epochs, batch: epochs and batch of the pre-training; None: the budget's.

        Returns:
            (chain: role -> stage id, label for the names of later stages).
        """
        chain: dict[str, str] = {"prepare": prepare}
        needs: dict[str, str] = {}
        spec: Json = {
            "student": self.config_spec(student),
            "method": self.config_spec(method, is_method=True),
            "seed": pretrain_seed,
        }
        pool, part = prepare, fraction  # the images of this method, and the fraction of them
        if trains(method) and method.get("synthesis") is not None:
            pool = self.synthesis(prepare, method, fraction, suite_teacher)
            chain["synthesis"], part = pool, 1.0
        if trains(method):
            chain["views"] = needs["views"] = self.views(pool, student)
            spec.update(self.fraction_spec(part))
            spec["budget"] = self.budget_spec(
                epochs or self.suite.budget.epochs, part == 1, method, batch
            )
            if "labels" in method_needs(method) or "share_by" in spec:
                needs["prepare"] = prepare
            if "teacher_images" in method_needs(method):
                needs["images"] = pool
            if method.get("teachers") is not None:
                spec["roles"] = list(method["teachers"])
            for role_teacher in teachers_by_role(method, suite_teacher):
                upstream = self.add_intermediate_teacher(
                    prepare, role_teacher, fraction, pretrain_seed, transfer_seed, suite_teacher
                )
                # The cache of a pool of generated images covers all of it.
                largest_fraction = None if pool == prepare else 1.0
                stages = self.teacher_stages(
                    pool, needs["views"], student, role_teacher, part, upstream, largest_fraction
                )
                _add_teacher(role_teacher, upstream, stages, spec, needs, chain)
        else:
            spec["seed"] = self.untrained_seed(method, pretrain_seed, transfer_seed)
        # An untrained student does not depend on the data fraction.
        fraction_label = _fraction_label(fraction) if trains(method) else ""
        label = f"{student['name']}.{method['name']}{budget_label(epochs, batch)}{fraction_label}"
        label += f".s{spec['seed']}"
        chain["pretrain"] = self.add("pretrain", label, spec, needs)
        teacher = teacher_config_for(method, suite_teacher)
        labels_used = labels_of_run(method, student)["labels_used"]
        about = model_card.about(
            {**method, "labels_used": labels_used},
            student,
            teacher,
            self.suite.data["name"],
            fraction,
            spec["seed"],
        )
        export_spec, needs = {"student": spec["student"]}, {"pretrain": chain["pretrain"]}
        chain["export"] = self.add("export", label, export_spec, needs, about=about)
        return chain, label

    def add_intermediate_teacher(
        self,
        prepare: str,
        role_teacher: RoleTeacher,
        fraction: float,
        pretrain_seed: int,
        transfer_seed: int,
        suite_teacher: Json | None,
    ) -> dict[str, str] | None:
        """Adds the pre-training of an intermediate teacher.

        Returns:
            its chain (role -> stage id); None if `role_teacher` is not an intermediate teacher.
        """
        intermediate = role_teacher.method.get("teacher")
        if intermediate is None:
            return None
        chain, _ = self.add_pretraining(
            prepare,
            intermediate["student"],
            intermediate["method"],
            fraction,
            pretrain_seed,
            transfer_seed,
            suite_teacher,
            intermediate["epochs"],
            intermediate.get("batch"),
        )
        return chain

    def untrained_seed(self, method: Json, pretrain_seed: int, transfer_seed: int) -> int:
        """Seed of the weights of a student without training steps; 0 for given weights.

        Every pair of seeds has different random weights.
        """
        if method.get("weights") is not None:
            return 0
        if self.suite.seeds.pairs == "product":
            return pretrain_seed * SEED_STEP + transfer_seed
        return transfer_seed

    def add_runs(
        self,
        prepare: str,
        student: Json,
        method: Json,
        fraction: float,
        pretrain_seed: int,
        transfer_seed: int,
    ) -> None:
        """Adds the runs of one method with one pair of seeds: all its tasks and probes."""
        suite_teacher = self.suite.teachers[student["name"]]
        chain, label = self.add_pretraining(
            prepare, student, method, fraction, pretrain_seed, transfer_seed, suite_teacher
        )
        teacher = teacher_config_for(method, suite_teacher)
        self.probes.add_probes(student, method, teacher, fraction, chain, label)
        for task in tasks_for(self.suite, method):
            stages = self.add_transfer(
                prepare, student, method, task, (chain["export"], label), fraction, transfer_seed
            )
            self.plan.runs.append(
                TransferRun(
                    method=method,
                    student=student,
                    teacher=teacher,
                    task=task,
                    fraction=fraction,
                    pretrain_seed=pretrain_seed,
                    transfer_seed=transfer_seed,
                    chain={**chain, **stages},
                )
            )

    def add_transfer(
        self,
        prepare: str,
        student: Json,
        method: Json,
        task: Json,
        exported: tuple[str, str],
        fraction: float,
        seed: int,
    ) -> dict[str, str]:
        """Adds a transfer stage and the stages of its tuned teacher, if it has one.

        Args:
            exported: (id of the export stage, label for stage names).

        Returns:
            role -> stage id of these stages.
        """
        transfer, chain = method.get("transfer"), dict[str, str]()
        export, label = exported
        spec: Json = {
            "task": self.config_spec(task),
            "student": self.config_spec(student),
            "seed": seed,
            **({"keep_model": True} if self.suite.keep_models else {}),
        }
        needs = {"prepare": prepare, "export": export} | self.pretraining_of(transfer, export)
        if transfer is not None:
            label = f"{label}.{transfer['name']}"
            if id(transfer) not in self.config_specs:
                self.configs.append(transfer)
                self.config_specs[id(transfer)] = without(
                    transfer, DESCRIPTION_KEYS | _TRANSFER_PLANNING
                )
            spec["transfer"] = self.config_specs[id(transfer)]
            if (teacher := tuned_teacher(method, student)) is not None:
                suite_teacher = self.suite.teachers[student["name"]]
                chain = self.add_tuned_teacher(prepare, teacher, task, fraction, suite_teacher)
                spec["teacher"] = self.config_spec(teacher["student"])
                needs["teacher"] = chain["tuned.transfer"]
        chain["transfer"] = self.add("transfer", f"{task['name']}.{label}-{seed}", spec, needs)
        return chain

    def pretraining_of(self, transfer: Json | None, export: str) -> dict[str, str]:
        """{"pretrain": stage id} for a transfer method that reads the pre-training.

        `export`: id of the stage that exports it.
        """
        kind = resolve_alias((transfer or {}).get("type"))
        if "pretrained" not in (class_value(kind, "stage_arguments") or ()):
            return {}
        return {"pretrain": self.plan.stages[export].needs["pretrain"]}

    def add_tuned_teacher(
        self, prepare: str, teacher: Json, task: Json, fraction: float, suite_teacher: Json | None
    ) -> dict[str, str]:
        """Adds the stages of a transfer method's teacher, which is trained on the task first.

        All runs of a task at a data fraction use the same teacher, trained with the suite's first
        seeds.

        Returns:
            "tuned." + role -> stage id.
        """
        student, seed = teacher["student"], self.suite.seeds.transfer[0]
        chain, label = self.add_pretraining(
            prepare,
            student,
            teacher["method"],
            fraction,
            self.suite.seeds.pretrain[0],
            seed,
            suite_teacher,
        )
        chain["transfer"] = self.add(
            "transfer",
            f"{task['name']}.{label}.teacher-{seed}",
            {
                "task": self.config_spec(task),
                "student": self.config_spec(student),
                "seed": seed,
                "keep_model": True,
                **({"transfer": teacher["transfer"]} if "transfer" in teacher else {}),
            },
            {"prepare": prepare, "export": chain["export"]}
            | self.pretraining_of(teacher.get("transfer"), chain["export"]),
        )
        return {
            f"tuned.{role}": stage_id for role, stage_id in chain.items() if role not in _COMMON
        }


def _stored_outputs(teacher: Json, method: Json) -> set[str]:
    """Outputs, in addition to the pooled feature, that a method reads from a teacher's cache."""
    if method.get("teacher_source") == "live":
        return set()
    names = method_needs(method) & STORED
    if teacher.get("card", {}).get("logits_from_pooled"):
        names.discard("logits")
    maps = levels_of(method.get("objective"))
    if "maps" in names:
        kind = MAPS_OUTPUT[method.get("stored_maps", "float16")]
        stored_maps = {f"{kind}.{name}" for name in maps} if maps else {kind}
        names = (names - {"maps"}) | stored_maps
    if "probabilities" in names:
        n_classes = top_classes(method.get("objective"))
        names = (names - {"probabilities"}) | {f"probabilities.{n_classes}"}
    return names


def _add_teacher(
    role_teacher: RoleTeacher,
    upstream: Mapping[str, str] | None,
    stages: Mapping[str, str],
    spec: Json,
    needs: dict[str, str],
    chain: dict[str, str],
) -> None:
    """Adds a teacher to the spec, the upstream stages and the chain of a pre-training.

    Args:
        role_teacher: the teacher.
        upstream: chain of an intermediate teacher; None for others.
        stages: its stages, from `teacher_stages`.
        spec, needs, chain: of the pre-training; they are changed.
    """
    if upstream is not None:
        teacher_chain = {k: v for k, v in upstream.items() if k not in _COMMON}
        chain.update({role_teacher.key(f"teacher.{k}"): v for k, v in teacher_chain.items()})
    if "images" in stages:  # a live teacher, which reads the pool
        needs["images"] = stages["images"]
        _set_live_teacher(spec, role_teacher)
    by_role = {role_teacher.key(kind): v for kind, v in stages.items() if kind != "images"}
    needs.update(by_role)
    chain.update(by_role)


def _set_live_teacher(spec: Json, role_teacher: RoleTeacher) -> None:
    """Adds the config of a live teacher to the spec, under its role if there are several."""
    assert role_teacher.suite_teacher is not None
    config = without(role_teacher.suite_teacher, DESCRIPTION_KEYS)
    if role_teacher.role:
        spec["teachers"] = {**spec.get("teachers", {}), role_teacher.role: config}
    else:
        spec["teacher"] = config


def stores_probabilities(method: Json) -> bool:
    """Whether a method reads class probabilities, which have a separate cache."""
    return "probabilities" in method_needs(method)


def _cache_group(method: Json) -> tuple[bool, bool]:
    """(reads probabilities, reads int8 maps): methods with equal values can share a cache."""
    reads_int8 = "maps" in method_needs(method) and method.get("stored_maps") == "int8"
    return stores_probabilities(method), reads_int8


def _fraction_label(fraction: float) -> str:
    return "" if fraction == 1 else f".{fraction:g}"


def check_size(suite: Suite) -> None:
    """Raises KdepError if a suite has more than MAX_RUNS transfer runs, or seeds that collide."""
    n_runs = 0
    for part in suite.variants or [suite]:
        seeds = part.seeds
        pairs = len(seeds.pretrain) * (len(seeds.transfer) if seeds.pairs == "product" else 1)
        for student in part.students:
            for method in methods_for(part, student):
                # Given weights do not depend on the pre-training seed, see `_Builder.pairs`.
                has_weights = method.get("weights") is not None
                n_pairs = len(seeds.transfer) if has_weights and seeds.pairs == "product" else pairs
                n_fractions = len(part.shares) if trains(method) else 1
                n_runs += n_pairs * n_fractions * len(tasks_for(part, method))
    if n_runs > MAX_RUNS:
        raise KdepError(
            f"the suite {suite.name!r} has {n_runs:,} transfer runs",
            expected=f"at most {MAX_RUNS:,}",
            fix="use fewer seeds, or seeds.pairs='diagonal' (the i-th pre-training seed with the "
            "i-th transfer seed, instead of all pairs)",
        )
    _check_untrained_seeds(suite)


def _check_untrained_seeds(suite: Suite) -> None:
    """Raises KdepError if two seed pairs give an untrained student the same random weights."""
    methods = [m for part in suite.variants or [suite] for m in part.methods]
    has_untrained = any(not trains(m) and m.get("weights") is None for m in methods)
    if not has_untrained or suite.seeds.pairs != "product":
        return
    first_pairs: dict[int, tuple[int, int]] = {}
    for pretrain_seed in suite.seeds.pretrain:
        for transfer_seed in suite.seeds.transfer:
            pair = (pretrain_seed, transfer_seed)
            earlier = first_pairs.setdefault(pretrain_seed * SEED_STEP + transfer_seed, pair)
            if earlier != pair:
                raise KdepError(
                    f"two seed pairs (pre-training, transfer) of the suite {suite.name!r}, "
                    f"{earlier} and {pair}, give an untrained student the same random weights",
                    expected=f"pairs with different values of {SEED_STEP} * pre-training seed + "
                    "transfer seed",
                    fix=f"use transfer seeds below {SEED_STEP}",
                )


def check_names(plan: Plan) -> None:
    """Raises KdepError if two different methods would be in the same row of the tables.

    This happens if two variants of a suite change a method or a teacher without renaming it.
    """
    first_runs: dict[tuple[Any, ...], TransferRun] = {}
    for run in plan.runs:
        budget = plan.stages[run.chain["pretrain"]].spec.get("budget") or {}
        teacher = "" if run.teacher is None else run.teacher["name"]
        key = (run.student["name"], row_name(run.method), teacher, run.fraction)
        key += (budget.get("epochs"), budget.get("epochs_over"), run.task["name"])
        earlier = first_runs.setdefault((*key, run.pretrain_seed, run.transfer_seed), run)
        if earlier.id != run.id:
            with_teacher = f" with the teacher {teacher!r}" if teacher else ""
            raise KdepError(
                f"two variants of the suite {plan.name!r} run different methods under one name, "
                f"{run.method['name']!r}{with_teacher}",
                fix="give one of them its own `name`: dict(base=..., name=...)",
            )


def build_plan(suite: Suite, kinds: Mapping[str, StageKind] = KINDS) -> Plan:
    """The plan of a suite: every stage once, upstream stages first.

    Raises:
        KdepError: a method cannot work with its student, teacher or data; a claim cannot be tested;
            or the suite contains no run.
    """
    plan = Plan(suite.name)
    check_size(suite)
    faults = Faults(by_fix=True)
    for variant in suite.variants or [suite]:
        with faults.collect():
            _Builder(variant, kinds, plan).build()
    faults.raise_any(f"the suite {suite.name!r}")
    check_names(plan)
    # Several variants can plan the same run (such as scratch); it is run once and has one record.
    unique_runs: dict[str, TransferRun] = {}
    for run in plan.runs:
        unique_runs.setdefault(run.id, run)
    plan.runs[:] = unique_runs.values()
    if suite.claims:
        budgets = {i: s.spec.get("budget") for i, s in plan.stages.items()}
        rows = {claim_checks.planned_row(run, budgets[run.chain["pretrain"]]) for run in plan.runs}
        families, probes = {t["family"] for t in suite.tasks}, {p["name"] for p in suite.probes}
        claim_checks.check_claims(suite.claims, rows, families, probes)
    check_probed(suite.probes, plan.probes)
    # raises KdepError if the factors do not form a grid
    grid_of([run.method for run in plan.runs], [run.student for run in plan.runs])
    return plan
