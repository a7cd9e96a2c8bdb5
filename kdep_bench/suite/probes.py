"""Probes of a suite: their checks when the plan is built, and their stages.

A probe measures an exported backbone. It reads features that stages of the kind `features` have
stored. All probes of a backbone share these stages: a stage for each folder of labelled images
(with all its splits), and a stage for images of the pool (the pre-training images). A class folder
has one sub-folder per class. No check reads the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kdep_bench.data.given_files import CONTENT
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.signatures import check_arguments, class_value
from kdep_bench.suite.graph import Plan, ProbeRun
from kdep_bench.suite.known_data import known_parts
from kdep_bench.suite.methods import DESCRIPTION_KEYS, teacher_width, without
from kdep_bench.suite.schema import ADD_PYRAMID, Json, Suite, method_needs, uses_teacher

SPLITS = ("train", "val", "test")
# Inputs of probes; a copy of `kdep_bench.probes.base.READS`, whose module imports torch.
READS = ("classes", "pool", "teacher", "backbone", "masks", "teacher_classes")
# Keys of a probe's config that are not arguments.
PLANNED = {"name", "folder", "type", CONTENT, *DESCRIPTION_KEYS}
MASKS = "cityscapes"  # the folder of images with masks
POOL_SEED = 0  # selects the pool images of probes; the same for every backbone


def reads(probe: Json) -> frozenset[str]:
    """Inputs that the probe's class reads, a subset of READS."""
    return frozenset(class_value(probe["type"], "reads") or ())


def applies_to(probe: Json, method: Json) -> bool:
    """Whether a probe measures a method.

    A probe of the method's teacher leaves out methods without a teacher or with several.
    """
    if not class_value(probe["type"], "only_with_teacher"):
        return True
    return uses_teacher(method) and method.get("teachers") is None


def splits(probe: Json) -> tuple[str, ...]:
    """Splits of the class folders that the probe's class reads."""
    return tuple(class_value(probe["type"], "splits") or ())


# ---- checks ----


def check_probe(data: Json, probe: Json) -> None:
    """Raises KdepError if a probe's config is invalid or does not fit the data."""
    for rule in (check_class, check_folder_key, check_class_folder, check_mask_folder):
        rule(data, probe)


def check_class(data: Json, probe: Json) -> None:
    """Checks that `type` is a probe with known inputs, and that it accepts its arguments."""
    check_arguments(without(probe, PLANNED - {"type"}), f"probe {probe['name']!r}")
    if not reads(probe):
        raise KdepError(
            f"the type {probe['type']!r} of probe {probe['name']!r} is not a probe",
            expected="a class of kdep_bench.probes with `reads`",
            fix="correct `type` in the probe's config",
        )
    for entry in sorted(reads(probe) - set(READS)):
        raise unknown_name("input", entry, READS, place=f"`reads` of {probe['type']}")


def check_folder_key(data: Json, probe: Json) -> None:
    """Checks that the config has `folder` if and only if the probe reads labelled images."""
    if splits(probe) and not probe.get("folder"):
        kind, folder = "class folders", "classify"
        if "masks" in reads(probe):
            kind, folder = "masks", MASKS
        raise KdepError(
            f"probe {probe['name']!r} reads {kind}, but its config has no `folder`",
            fix=f"set folder={folder!r} in the probe's config",
        )
    if probe.get("folder") and not splits(probe):
        raise KdepError(
            f"probe {probe['name']!r} has folder={probe['folder']!r}, but reads no class folders",
            fix="remove `folder` from the probe's config",
        )


def check_class_folder(data: Json, probe: Json) -> None:
    """Checks that the folder has class labels and all splits that the probe reads."""
    parts = known_parts(data)
    if parts is None or not splits(probe) or "masks" in reads(probe):
        return
    folder, label = probe["folder"], f"probe {probe['name']!r}"
    config_key = (parts.config_keys or {}).get(folder) or folder
    if folder in parts.splits and folder in ("detect", "cityscapes"):
        raise KdepError(
            f"{label} reads one label per image, but `{folder}` of the data {data['name']!r} has "
            f"{'boxes' if folder == 'detect' else 'masks'}",
            fix="use a folder with one sub-folder per class, such as folder='classify'",
        )
    if folder not in parts.splits:
        class_folders = [name for name in parts.splits if name not in ("detect", "cityscapes")]
        raise KdepError(
            f"{label} reads the folder {folder!r} of the data, but the data {data['name']!r} has "
            f"{', '.join(class_folders) or 'no class folders'}",
            fix="correct `folder` in the probe's config, or remove the probe from the suite",
        )
    available = parts.splits[folder]
    if available is None:
        raise KdepError(
            f"{label} reads the splits {', '.join(splits(probe))}, but {folder!r} of the data "
            f"{data['name']!r} has no splits",
            fix="use a folder with splits, such as folder='classify', or remove the probe",
        )
    _check_splits(data, probe, available, config_key)


def check_mask_folder(data: Json, probe: Json) -> None:
    """Checks `size`, and that the data have masks and all splits that the probe reads."""
    if "masks" not in reads(probe):
        return
    if len(probe.get("size") or ()) != 2:
        raise KdepError(
            f"probe {probe['name']!r} has size = {probe.get('size')!r}",
            expected="(height, width) in pixels",
            fix="set size=(120, 160) in the probe's config",
        )
    parts = known_parts(data)
    if parts is None:
        return
    if MASKS not in parts.splits:
        raise KdepError(
            f"probe {probe['name']!r} reads images with masks, but the data {data['name']!r} has "
            "none",
            fix="remove the probe from the suite",
        )
    if probe["folder"] != MASKS:
        raise KdepError(
            f"probe {probe['name']!r} reads images with masks, but its config has "
            f"folder = {probe['folder']!r}",
            fix=f"set folder={MASKS!r} in its config",
        )
    config_key = (parts.config_keys or {}).get(MASKS) or MASKS
    _check_splits(data, probe, parts.splits[MASKS] or (), config_key)


def _check_splits(data: Json, probe: Json, available: Sequence[str], config_key: str) -> None:
    """Checks that the data have all splits that the probe reads."""
    folder, label = probe["folder"], f"probe {probe['name']!r}"
    if missing := [split for split in splits(probe) if split not in available]:
        raise KdepError(
            f"{label} reads {' and '.join(f'{folder}/{s}' for s in missing)}, but `{config_key}` "
            f"of the data {data['name']!r} has the splits {', '.join(available) or 'none'}",
            expected=f"the splits {', '.join(splits(probe))}",
            fix=f"add {' and '.join(f'{config_key}.{s}' for s in missing)} to the data config, or "
            "remove the probe from the suite",
        )


def check_probe_student(student: Json, probe: Json) -> None:
    """Raises KdepError if a probe reads maps of several levels and the student has none."""
    if "masks" in reads(probe) and not (student.get("pyramid") or {}).get("out_indices"):
        raise KdepError(
            f"probe {probe['name']!r} reads feature maps, but student {student['name']!r} has no "
            "`pyramid` in its config",
            fix=f"{ADD_PYRAMID}, or remove the probe or the student from the suite",
        )


def check_probe_teacher(suite: Suite, student: Json, method: Json, probe: Json) -> None:
    """Raises KdepError if a probe compares with a teacher whose stored features do not exist."""
    if "teacher" not in reads(probe):
        return
    label = f"probe {probe['name']!r}"
    uses_method_teacher = probe.get("teacher") == "method"
    if uses_method_teacher and not uses_teacher(method):
        raise KdepError(
            f"{label} compares each method with its own teacher, but the method "
            f"{method['name']!r} has none",
            fix="set teacher='suite' in the probe's config, or remove the method or the probe",
        )
    if uses_method_teacher and method.get("teachers") is not None:
        raise KdepError(
            f"{label} compares each method with its own teacher, but the method "
            f"{method['name']!r} has several ({', '.join(method['teachers'])})",
            fix="set teacher='suite' in the probe's config, or remove the method or the probe",
        )
    if not uses_method_teacher and suite.teachers[student["name"]] is None:
        raise KdepError(
            f"{label} compares with the suite's teacher, but the suite has none for student "
            f"{student['name']!r}",
            fix="set `teacher` in the suite, or remove the probe",
        )
    if uses_method_teacher and method.get("synthesis") is not None:
        raise KdepError(
            f"{label} compares the features of pool images with those of each method's own teacher "
            f"for the same images, but the teacher of the method {method['name']!r} has only seen "
            "the images that the method makes (`synthesis`)",
            fix="set teacher='suite' in the probe's config, or remove the method or the probe",
        )
    is_stored = "pooled" in method_needs(method) or "probabilities" not in method_needs(method)
    is_live = method.get("teacher_source") == "live" and not method.get("align")
    if uses_method_teacher and (is_live or not is_stored):
        reason = "its teacher is live" if is_live else "it stores class probabilities only"
        raise KdepError(
            f"{label} reads the stored features of each method's own teacher, but the method "
            f"{method['name']!r} stores none, because {reason}",
            fix="set teacher='suite' in the probe's config, or remove the method or the probe",
        )
    if suite.budget.teacher == "live":
        raise KdepError(
            f"{label} reads the teacher's stored features, but budget.teacher is 'live', which "
            "stores none",
            fix="set budget.teacher='cached', or remove the probe",
        )


def check_probe_text(teacher: Json | None, probe: Json) -> None:
    """Raises KdepError if a probe's texts cannot be compared with a teacher's feature."""
    embeddings = class_value(probe["type"], "text_argument")
    model = class_value(probe["type"], "text_model_argument")
    if not (embeddings or model) or teacher is None:
        return
    from kdep_bench.probes.clip_folder import read_clip_folder
    from kdep_bench.probes.text import read_text_embeddings

    name = repr(teacher.get("name"))
    if class_value(str(teacher.get("type")), "black_box"):
        raise KdepError(
            f"probe {probe['name']!r} compares texts with the feature of the teacher {name}, which "
            "returns class probabilities only",
            fix="choose another teacher, or remove the probe",
        )
    if embeddings:
        texts = read_text_embeddings(probe.get(embeddings))
    else:
        texts = read_clip_folder(probe.get(model))
        words = probe.get("words")
        shortest = probe["context"] if words is None else len(words.split())
        texts.check_length(shortest + 1, "the prompt")  # the final "." is a token
    width = teacher_width(teacher)
    if width is not None:
        texts.check_width(width, f"the teacher {name}")


def check_probed(probes: Sequence[Json], runs: Sequence[ProbeRun]) -> None:
    """Raises KdepError if there is a probe that measures no method of the suite."""
    probed = {run.probe["name"] for run in runs}
    for probe in probes:
        if probe["name"] not in probed:
            raise KdepError(
                f"probe {probe['name']!r} measures the teachers of methods, but no method of the "
                "suite has a single teacher",
                fix="add such a method, or remove the probe from the suite",
            )


# ---- stages ----


class ProbePlanner:
    """Adds the probe stages of one suite to its plan.

    Args:
        suite: the suite.
        plan: its plan, which is changed.
        add: adds a stage (kind, name, spec, needs) and returns its id.
        views: adds the fixed views for a student and returns the stage's id.
        suite_cache: adds the cache of the suite's teacher for a student and returns its id.
    """

    def __init__(
        self,
        suite: Suite,
        plan: Plan,
        add: Callable[[str, str, Json, Mapping[str, str]], str],
        views: Callable[[Json], str],
        suite_cache: Callable[[Json], str],
    ) -> None:
        self.suite, self.plan, self.add = suite, plan, add
        self.views, self.suite_cache = views, suite_cache
        self._planned = {run.id for run in plan.probes}
        # `Plan.text` caches the JSON of a dict by its identity, so each config is stripped once.
        self._specs = {
            id(c): without(c, DESCRIPTION_KEYS) for c in (*suite.probes, *suite.students)
        }

    def add_probes(
        self,
        student: Json,
        method: Json,
        teacher: Json | None,
        fraction: float,
        chain: Mapping[str, str],
        label: str,
    ) -> None:
        """Adds the suite's probes of one exported backbone, unless they were added before.

        Args:
            student, method, teacher: their configs.
            fraction: data fraction of the pre-training.
            chain: role -> id of the export stage of the backbone and of all its upstream stages.
            label: label for stage names.
        """
        for probe in self.suite.probes:
            if not applies_to(probe, method):
                continue
            check_probe_teacher(self.suite, student, method, probe)
            check_probe_student(student, probe)
            check_probe_text(teacher, probe)
            needs, spec = self._needs(probe, student, chain, label), {"probe": self._spec(probe)}
            if "teacher_classes" in reads(probe):
                assert teacher is not None
                needs["teacher_features"] = self._teacher_features(probe["folder"], teacher, chain)
            if "backbone" in reads(probe):
                needs |= {"export": chain["export"], "prepare": chain["prepare"]}
                spec["student"] = self._spec(student)
            stage = self.add("probe", f"{probe['name']}.{label}", spec, needs)
            if stage not in self._planned:
                self._planned.add(stage)
                self.plan.probes.append(
                    ProbeRun(
                        probe=probe,
                        method=method,
                        student=student,
                        teacher=teacher,
                        fraction=fraction,
                        seed=self.plan.stages[chain["pretrain"]].spec["seed"],
                        chain={**chain, **needs, "probe": stage},
                    )
                )

    def _spec(self, config: Json) -> Json:
        return self._specs[id(config)]

    def _needs(
        self, probe: Json, student: Json, chain: Mapping[str, str], label: str
    ) -> dict[str, str]:
        """Adds the features that a probe reads; returns role -> id of the stages that it needs."""
        needs = {}
        if splits(probe) and "teacher_classes" not in reads(probe):
            size = probe["size"] if "masks" in reads(probe) else None
            needs["features"] = self._split_features(probe["folder"], size, student, chain, label)
        if "pool" in reads(probe):
            uses_method_teacher = probe.get("teacher") == "method"
            cache = chain["cache"] if uses_method_teacher else self.suite_cache(student)
            # All methods of a fraction are measured on images of this fraction, also those whose
            # teacher has a cache of all images.
            source = chain["pretrain"] if uses_method_teacher else cache
            needs["pool"] = self._pool_features(probe["rows"], source, student, chain, label)
            if "teacher" in reads(probe):
                needs["cache"] = cache
        return needs

    def _split_features(
        self,
        folder: str,
        size: list[int] | None,
        student: Json,
        chain: Mapping[str, str],
        label: str,
    ) -> str:
        """Adds the features of all splits of a folder, also of splits that no probe reads.

        So the stage's id does not change if a probe that reads another split is added. `size`:
        (height, width) of images with masks, whose maps are stored; None for class folders.
        """
        images = self._class_folder(folder)
        images |= {} if size is None else {"size": list(size)}
        return self.add(
            "features",
            f"{folder}.{label}",
            {"student": self._spec(student), "images": images},
            {"prepare": chain["prepare"], "export": chain["export"]},
        )

    def _class_folder(self, folder: str) -> Json:
        """The spec of a folder with all splits that the data have."""
        parts = known_parts(self.suite.data)
        available = SPLITS if parts is None else parts.splits[folder] or ()
        return {"folder": folder, "splits": [s for s in SPLITS if s in available]}

    def _teacher_features(self, folder: str, teacher: Json, chain: Mapping[str, str]) -> str:
        """Adds a teacher's features of all splits of a folder; all its students share them."""
        needs = {"prepare": chain["prepare"]}
        if "teacher.export" in chain:  # an intermediate teacher
            needs |= {role: chain[f"teacher.{role}"] for role in ("export", "pretrain")}
        return self.add(
            "features",
            f"{folder}.{teacher['name']}",
            {"teacher": without(teacher, DESCRIPTION_KEYS), "images": self._class_folder(folder)},
            needs,
        )

    def _pool_features(
        self, rows: int, source: str, student: Json, chain: Mapping[str, str], label: str
    ) -> str:
        """Adds the features of `rows` images from the data fraction of the stage `source`."""
        source_spec = self.plan.stages[source].spec
        keys = ("share", "share_seed", "share_by")
        fraction_spec = {k: source_spec[k] for k in keys if k in source_spec}
        if fraction_spec.get("share") == 1:
            fraction_spec = {}
        needs = {"views": self.views(student), "export": chain["export"]}
        if "share_by" in fraction_spec:
            needs["prepare"] = chain["prepare"]
        return self.add(
            "features",
            f"pool.{label}",
            {
                "student": self._spec(student),
                "images": {"rows": rows, "seed": POOL_SEED, **fraction_spec},
            },
            needs,
        )
