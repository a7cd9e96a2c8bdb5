"""Reads suite configs: mmengine pure-Python files -> one frozen, checked, JSON-able Suite.

A suite names its data, students, teacher, methods, tasks and claims by file name in
`configs/<kind>s/`, or as `dict(base='kdep', <overrides>)`. Classes imported in a config stay
lazy: they become dotted path strings, so that reading a config never imports torch.

A config file is code and is executed; read other people's suites before running them.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdep_bench import trackers
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import safe_name
from kdep_bench.paths import CONFIGS, IS_INSTALLED
from kdep_bench.signatures import argument_names
from kdep_bench.suite.data_config import (
    check_inline,
    check_keys,
    data_keys,
    with_keys,
    without_unused,
)
from kdep_bench.suite.methods import row_name
from kdep_bench.suite.schema import (
    MODELS,
    NAME_LIMIT,
    NEEDS,
    Assistant,
    Budget,
    Json,
    Suite,
    SuiteFile,
    TransferPart,
    TunedTeacher,
    Variant,
    method_needs,
)

FOLDERS = {
    "data": "data",
    "teacher": "teachers",
    "student": "students",
    "method": "methods",
    "task": "tasks",
    "probe": "probes",
    "claim": "claims",
    "suite": "suites",
    "search": "searches",
}
# Kinds whose config a suite may hold completely, by a key that every such config has.
WHOLE = {"data": "type", "student": "backbone", "claim": "kind"}


def config_files(kind: str, configs: Path = CONFIGS) -> dict[str, Path]:
    """The configs of a kind ('method', 'suite', ...) by name, sorted.

    The project's configs, those of `$KDEP_CONFIGS`, of plug-ins, and, where the project is
    installed from a wheel, of ./configs; see `config_folders`.

    Raises:
        KdepError: two folders hold a config of one name.
    """
    files: dict[str, Path] = {}
    for folder in config_folders() if configs == CONFIGS else [configs]:
        for path in (folder / FOLDERS[kind]).glob("*.py"):
            if path.stem == "__init__":
                continue
            if path.stem in files:
                raise KdepError(
                    f"two {kind} configs are named {path.stem!r}: {files[path.stem]} and {path}",
                    fix="rename your file",
                )
            files[path.stem] = path
    return dict(sorted(files.items()))


def names(kind: str, configs: Path = CONFIGS) -> list[str]:
    """The names of the configs of a kind, sorted."""
    return list(config_files(kind, configs))


def config_folders() -> list[Path]:
    """Folders with sub-folders as in FOLDERS: the project's configs first, then those of plug-ins.

    A plug-in is a package that registers an entry point of the group `kdep_bench.configs`; its
    value names the package whose folder holds the configs.
    """
    folders = [CONFIGS]
    if IS_INSTALLED and (local_configs := Path.cwd() / "configs").is_dir():
        folders.append(local_configs)
    if extra_folder := os.environ.get("KDEP_CONFIGS"):
        folder = Path(extra_folder).absolute()
        if not folder.is_dir():
            raise KdepError(
                f"the folder {folder} of $KDEP_CONFIGS does not exist",
                expected="a folder with methods/, teachers/, tasks/, ...",
                fix="correct the variable, or unset it",
            )
        if folder != CONFIGS:
            folders.append(folder)
    return [*folders, *_plugin_folders()]


@cache
def _plugin_folders() -> tuple[Path, ...]:
    folders = []
    for plugin in entry_points(group="kdep_bench.configs"):
        spec = find_spec(plugin.value)
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not places:
            raise KdepError(
                f"the plug-in {plugin.name!r} names the package {plugin.value!r}, "
                "which cannot be found",
                expected="an installed package with methods/, teachers/, tasks/, ...",
                fix=f"reinstall or uninstall {plugin.dist.name if plugin.dist else plugin.name}",
            )
        folders.append(Path(places[0]))
    return tuple(folders)


def read_config(path: Path) -> Json:
    """All plain variables of an mmengine pure-Python config; classes as dotted path strings."""
    from mmengine.config import Config
    from mmengine.config.config import _lazy2string

    try:
        cfg = Config.fromfile(path, lazy_import=True)
    except (KdepError, KeyboardInterrupt):
        raise
    except BaseException as e:  # a config is code and can raise anything, also SystemExit
        raise KdepError(
            f"the config {path} cannot be read ({type(e).__name__}: {e})",
            expected="an mmengine config in pure Python",
            fix=f"correct {path}",
        ) from e
    plain = _lazy2string(cfg._cfg_dict._to_lazy_dict(), dict)
    return {k: v for k, v in plain.items() if k not in cfg._imported_names and k != "read_base"}


def _json(value: Any, where: str) -> Any:
    """`value` as plain JSON (tuples become lists); KdepError if it is not plain data."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise KdepError(
            f"the config {where} contains a value that is not plain data ({e})",
            expected="numbers, strings, lists, dicts and imported classes",
            fix="replace that value",
        ) from None


def load_config(kind: str, name: str, configs: Path = CONFIGS) -> Json:
    """The dict that the file of a config defines, as plain JSON; see `config_files`.

    Raises:
        KdepError: no config of that name, or a file that does not define the dict.
    """
    files = config_files(kind, configs)
    if name not in files:
        raise unknown_name(f"{kind} config", name, files)
    path = files[name]
    variables = read_config(path)
    if not isinstance(variables.get(kind), dict):
        raise KdepError(
            f"the config {path} defines no dict named {kind!r} "
            f"(but {', '.join(sorted(variables)) or 'nothing'})",
            fix=f"write `{kind} = dict(...)` in that file",
        )
    return _json(variables[kind], str(path))


def merged(base: Json, overrides: Json, where: str) -> Json:
    """`base` with `overrides` merged into it, dict by dict.

    `_delete_=True` in a dict of `overrides` replaces the dict of the base, and allows any key.

    Raises:
        KdepError: a key that the base does not have, unless the class of the dict's `type` accepts
            an argument of that name.
    """
    if overrides.get("_delete_"):
        return {k: v for k, v in overrides.items() if k != "_delete_"}
    out = copy.deepcopy(base)
    for key, value in overrides.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            out[key] = merged(old, value, f"{where}.{key}")
        elif key in base:
            out[key] = (
                {k: v for k, v in value.items() if k != "_delete_"}
                if isinstance(value, dict)
                else value
            )
        elif key in (known := {*base, *argument_names({**base, **overrides}.get("type"))}):
            out[key] = value
        else:
            raise unknown_name(f"key of {where}", key, known)
    return out


def _claim_keys() -> Json:
    """The keys of a claim; below `a` and `b` those of a side."""
    from kdep_bench.results.claims.schema import Claim, Side

    sides = {side: dict.fromkeys(Side.model_fields) for side in ("a", "b")}
    return {**dict.fromkeys(Claim.model_fields), **sides}


def _overridden(kind: str, ref: Json, configs: Path) -> Json:
    base = load_config(kind, ref["base"], configs)
    base.setdefault("name", ref["base"])
    overrides = {k: v for k, v in ref.items() if k != "base"}
    keys = dict.fromkeys(MODELS[kind].model_fields)
    if kind == "data":
        keys |= data_keys({**base, **overrides}) or {}
    if kind == "claim":
        keys |= _claim_keys()
    if kind == "teacher":
        keys["card"] = {"trained_on": None}
    if kind == "method":
        keys["teacher"] = dict.fromkeys(Assistant.model_fields)
        keys["transfer"] = dict.fromkeys(TransferPart.model_fields)
    got = merged(with_keys(base, keys), overrides, f"{kind} {ref['base']!r}")
    return without_unused(got, base, overrides)


def resolve(kind: str, ref: Any, configs: Path = CONFIGS) -> Json:
    """The checked config that a suite refers to.

    Args:
        kind: the kind of config, a key of FOLDERS.
        ref: a file name in the folder of that kind, or dict(base=..., overrides). Kinds of WHOLE
            may also be given completely, as dict(type=..., name=..., ...) for data. An override of
            data may add every key that its `type` accepts.
        configs: folder of all configs.

    Raises:
        KdepError: an unknown name or key, or a reference of another form.
    """
    whole = isinstance(ref, dict) and "base" not in ref and WHOLE.get(kind) in ref
    if isinstance(ref, str):
        got = load_config(kind, ref, configs)
        got.setdefault("name", ref)
    elif whole:
        got = dict(ref)
    elif isinstance(ref, dict) and isinstance(ref.get("base"), str):
        got = _overridden(kind, ref, configs)
    else:
        key = WHOLE.get(kind)
        also = f", or the complete config as dict({key}=..., name=..., ...)" if key else ""
        raise KdepError(
            f"the {kind} {ref!r:.80} of the suite is neither a name nor a dict with 'base'",
            expected=f"a file name in configs/{FOLDERS[kind]}/ or dict(base='...', "
            f"<overrides>){also}",
            fix="correct the suite",
        )
    if whole and kind == "data":
        check_inline(got)
    check(MODELS[kind], got, f"{kind} {got.get('name', ref)!r}")
    if kind == "data":
        check_keys(got)
    if kind == "claim":
        from kdep_bench.results.claims.schema import make_claim

        make_claim(got)
    safe_name(got["name"], f"{kind} name")
    if len(got["name"]) > NAME_LIMIT:
        raise KdepError(
            f"the {kind} name {got['name']!r} has {len(got['name'])} characters",
            expected=f"at most {NAME_LIMIT}",
            fix="shorten it",
        )
    return got


_Model = TypeVar("_Model", bound=BaseModel)


def check(model: type[_Model], value: Any, where: str) -> _Model:
    """`value` as `model`; KdepError for the first fault, with the nearest name of a key."""
    try:
        return model.model_validate(value)
    except ValidationError as e:
        fault = e.errors(include_url=False)[0]
    place = [str(p) for p in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        fields = _fields_at(model, place[:-1])
        raise unknown_name(f"key of the {'.'.join([where, *place[:-1]])}", place[-1], fields)
    if fault["type"] == "missing":
        raise KdepError(
            f"the {where} lacks the key {'.'.join(place)!r}", fix="add it to the config"
        )
    got = fault.get("input")
    expected = fault["msg"].removeprefix("Input should be ")
    if fault["type"] == "too_short":  # "List should have at least 1 item after validation, not 0"
        expected = f"at least {fault.get('ctx', {}).get('min_length', 1)} in the list"
    key = "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in place).removeprefix(".")
    raise KdepError(
        f"the {where} has {key} = {got!r:.80}", expected=expected, fix="correct the config"
    )


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return list(model.model_fields)


def _unique(entries: str, names: list[str]) -> None:
    duplicates = sorted(n for n, count in Counter(names).items() if count > 1)
    if duplicates:
        remainder = f" and {len(duplicates) - 5} others" if len(duplicates) > 5 else ""
        raise KdepError(
            f"the suite lists {entries} {', '.join(duplicates[:5])}{remainder} more than once",
            fix="remove the duplicates, or give an override its own `name`",
        )


def with_assistants(method: Json, configs: Path, below: tuple[str, ...] = ()) -> Json:
    """`method` with the configs of its intermediate teacher, and of that one's, resolved.

    Raises:
        KdepError: teachers that form a loop, or an unknown config.
    """
    chain = (*below, method["name"])
    if method["name"] in below:
        raise KdepError(
            f"the teachers of the methods form a loop: {' <- '.join(chain)}",
            fix="correct `teacher` in one of these methods, so that the last teacher is the "
            "suite's",
        )
    if method.get("teachers") is not None:
        return {
            **method,
            "teachers": {
                role: _role_teacher(role, ref, method["name"], configs, chain)
                for role, ref in method["teachers"].items()
            },
        }
    if method.get("teacher") is None:
        return method
    if method.get("needs") is None:
        method = {**method, "needs": sorted(method_needs(method))}
    where = f"method {method['name']!r}.teacher"
    return {**method, "teacher": _assistant(method["teacher"], where, configs, chain)}


def _assistant(ref: Json, where: str, configs: Path, chain: tuple[str, ...]) -> Json:
    """An intermediate teacher with its student and method read in."""
    assistant = check(Assistant, ref, where)
    return {
        "student": resolve("student", assistant.student, configs),
        "method": with_assistants(resolve("method", assistant.method, configs), configs, chain),
        "epochs": assistant.epochs,
    }


def _role_teacher(role: str, ref: Any, method: str, configs: Path, chain: tuple[str, ...]) -> Any:
    """One of the `teachers` of a method: "suite", a teacher config or an intermediate teacher."""
    where = f"method {method!r}.teachers.{role}"
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,23}", role):
        raise KdepError(
            f"the {where} has a role that is no plain name",
            expected="up to 24 lower-case letters, digits and underscores, a letter first",
            fix="rename the role in the method's `teachers`",
        )
    if ref == "suite":
        return ref
    if isinstance(ref, dict) and "base" not in ref:
        return _assistant(ref, where, configs, chain)
    return resolve("teacher", ref, configs)


def _whole_method(method: Json, configs: Path) -> Json:
    """A resolved method with the configs that it names read in."""
    return with_assistants(with_transfer(method, configs), configs)


# Keys of a config with `transfer` that describe the transfer method; the others describe a
# pre-training, and so belong into the config that `pretrained_by` names.
_OF_TRANSFER = ("name", "family", "source", "reconstruction", "about")


def with_transfer(method: Json, configs: Path) -> Json:
    """`method` itself, or the pre-training that it names by `pretrained_by` with `transfer` in it.

    `transfer` of the result has the transfer method's name and source, and the configs of its
    teacher.

    Raises:
        KdepError: a config that describes a pre-training and a transfer method in one.
    """
    name, kept = method["name"], {*_OF_TRANSFER, "students", "card"}
    if method.get("transfer") is None:
        if method.get("pretrained_by") is not None:
            raise KdepError(
                f"method {name!r} has `pretrained_by` but no `transfer`",
                fix="remove `pretrained_by`, or add the transfer method",
            )
        return {k: v for k, v in method.items() if k not in ("transfer", "pretrained_by")}
    pretrain_keys = {k for k, v in method.items() if v not in (None, False)} - kept
    if pretrain_keys := sorted(pretrain_keys - {"transfer", "pretrained_by", "steps"}):
        raise KdepError(
            f"method {name!r} has `transfer` and also sets {', '.join(pretrain_keys)}",
            expected="a config of a transfer method, which names its pre-training by "
            "`pretrained_by`",
            fix="move `transfer` into a separate method config, with pretrained_by=<the method>",
        )
    part = check(TransferPart, method["transfer"], f"method {name!r}.transfer")
    before = resolve("method", method.get("pretrained_by") or "scratch", configs)
    if before.get("transfer") is not None:
        raise KdepError(
            f"method {name!r} is pre-trained by {before['name']!r}, which is a transfer method",
            fix="name a pre-training in `pretrained_by`, such as 'kdep' or 'scratch'",
        )
    made = {k: v for k, v in before.items() if k not in ("transfer", "pretrained_by")}
    transfer = {**method["transfer"], **{k: method[k] for k in _OF_TRANSFER if k in method}}
    if part.teacher is not None:
        transfer["teacher"] = _tuned_teacher(part.teacher, name, configs)
    if method.get("students") is not None:
        made["students"] = method["students"]
    return {**made, "transfer": transfer}


def _tuned_teacher(teacher: Json, name: str, configs: Path) -> Json:
    named = check(TunedTeacher, teacher, f"method {name!r}.transfer.teacher")
    method = resolve("method", named.method, configs)
    if method.get("transfer") is not None:
        raise KdepError(
            f"the teacher of the transfer method {name!r} is transferred with {method['name']!r}",
            expected="a teacher that is transferred without a transfer method",
            fix="name a pre-training as its method, such as 'kdep' or 'supervised'",
        )
    return {
        "student": resolve("student", named.student, configs),
        "method": with_assistants(method, configs),
    }


def find_suite(ref: str, configs: Path = CONFIGS) -> Path:
    """The file of a suite given as a path or as a name in configs/suites/."""
    path = Path(ref)
    if path.suffix == ".py" or path.is_file():
        if not path.is_file():
            near = names("suite", configs)
            raise KdepError(
                f"the suite file {ref} does not exist",
                expected="the path of a suite config, or one of: " + ", ".join(near),
                fix="check the path",
            )
        return path
    files = config_files("suite", configs)
    if ref not in files:
        raise unknown_name("suite", ref, files)
    return files[ref]


def load_suite(ref: str | Path, configs: Path | None = None) -> Suite:
    """Reads, resolves and checks a suite.

    Args:
        ref: path of a suite config, or the name of one in `configs/suites/`.
        configs: folder with one folder per kind of config; default: the repository's `configs/`.

    Raises:
        KdepError: an unknown key or name (with the nearest valid ones), a wrong type, an empty
            list, a name twice.
    """
    configs = configs or CONFIGS
    path = find_suite(str(ref), configs)
    variables = read_config(path)
    if not isinstance(variables.get("suite"), dict):
        raise KdepError(
            f"the suite file {path} defines no dict named 'suite'",
            fix=f"write `suite = dict(...)` in {path}",
        )
    return build_suite(_json(variables["suite"], str(path)), configs)


def build_suite(raw: Json, configs: Path = CONFIGS) -> Suite:
    """A Suite from the plain dict of a suite file; see `load_suite`."""
    file = check(SuiteFile, raw, "suite")
    safe_name(file.name, "suite name")
    everything: Callable[[str, list[Any]], list[Json]] = lambda kind, refs: [  # noqa: E731
        resolve(kind, r, configs) for r in refs
    ]
    students = everything("student", file.students)
    methods = [_whole_method(m, configs) for m in everything("method", file.methods)]
    tasks = everything("task", file.tasks)
    probes = everything("probe", file.probes)
    claims = everything("claim", file.claims)
    for entries, group in (
        ("student", students),
        ("task", tasks),
        ("probe", probes),
        ("claim", claims),
    ):
        _unique(entries, [g["name"] for g in group])
    _unique("method", [row_name(m) for m in methods])
    _check_fractions(file.shares)
    known_students = {*names("student", configs), *(s["name"] for s in students)}
    for method in methods:
        for student in method.get("students") or []:
            if student not in known_students:
                raise unknown_name(f"student of method {method['name']!r}", student, known_students)
        for need in method.get("needs") or []:
            if need not in NEEDS:
                raise unknown_name(f"need of method {method['name']!r}", need, NEEDS)
    seeds = file.seeds
    _unique("pretrain seed", [str(s) for s in seeds.pretrain])
    _unique("transfer seed", [str(s) for s in seeds.transfer])
    if seeds.pairs == "diagonal" and len(seeds.pretrain) != len(seeds.transfer):
        raise KdepError(
            f"seeds.pairs is 'diagonal' but there are {len(seeds.pretrain)} pre-training and "
            f"{len(seeds.transfer)} transfer seeds",
            expected="the same number of both",
            fix="add seeds, or remove seeds.pairs",
        )
    suite = Suite(
        name=file.name,
        about=file.about,
        data=resolve("data", file.data, configs),
        teachers=_teachers(file.teacher, students, configs),
        students=students,
        methods=methods,
        tasks=tasks,
        probes=probes,
        claims=claims,
        shares=file.shares,
        share_by=file.share_by,
        views=file.views,
        budget=file.budget,
        seeds=seeds,
        runtime=file.runtime.model_copy(
            update={"trackers": trackers.resolve(file.runtime.trackers)}
        ),
    )
    variants = [_variant(suite, v, i, configs) for i, v in enumerate(file.variants)]
    return suite.model_copy(update={"variants": variants})


def _variant(suite: Suite, raw: Json, number: int, configs: Path) -> Suite:
    variant = check(Variant, raw, f"suite variant {number}")
    update: Json = {}
    if variant.teacher is not None:
        update["teachers"] = _teachers(variant.teacher, suite.students, configs)
    if variant.methods is not None:
        resolved = [resolve("method", m, configs) for m in variant.methods]
        update["methods"] = [_whole_method(m, configs) for m in resolved]
        _unique(f"in variant {number} the method", [row_name(m) for m in update["methods"]])
    if variant.shares is not None:
        update["shares"] = _check_fractions(variant.shares)
    budget = suite.budget.model_dump()
    budget = merged(budget, variant.budget, f"budget of suite variant {number}")
    update["budget"] = check(Budget, budget, f"budget of suite variant {number}")
    return suite.model_copy(update=update)


def _check_fractions(fractions: list[float]) -> list[float]:
    _unique("share", [str(s) for s in fractions])
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise KdepError(
                f"the suite has the data fraction {fraction} in `shares`",
                expected="above 0 and at most 1",
                fix="correct `shares` in the suite",
            )
    return fractions


def _teachers(ref: Any, students: list[Json], configs: Path) -> dict[str, Json | None]:
    """Teacher config per student, from one reference for all or from a dict by student."""
    names = [s["name"] for s in students]
    if ref is None:
        return dict.fromkeys(names)
    if isinstance(ref, str) or (isinstance(ref, dict) and "base" in ref):
        return dict.fromkeys(names, resolve("teacher", ref, configs))
    if not isinstance(ref, dict):
        raise KdepError(
            f"the suite has teacher = {ref!r:.80}",
            expected="the name of a teacher, or a dict with one name per student",
            fix="correct `teacher` in the suite",
        )
    for name in ref:
        if name not in names:
            raise unknown_name("student under suite.teacher", name, names)
    missing = [w for w in names if w not in ref]
    if missing:
        raise KdepError(
            f"suite.teacher has no teacher for the student {', '.join(missing)}",
            fix="add one per student (None for a student without a teacher)",
        )
    return {w: None if ref[w] is None else resolve("teacher", ref[w], configs) for w in names}
