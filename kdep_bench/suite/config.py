"""Reads a suite config (a Python file, read by mmengine) into a checked, immutable Suite.

A suite names its data, students, teacher, methods, tasks and claims by file name in
`configs/<kind>s/`, or as `dict(base='kdep', <overrides>)`. A class that a config imports becomes
a string with its dotted path, so that reading a config never imports torch. `Json` is a dict of
plain values (numbers, strings, lists, dicts).

A config file is code and is executed; read other people's suites before running them.
"""

from __future__ import annotations

import ast
import copy
import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kdep_bench import trackers
from kdep_bench.errors import KdepError, expected_text, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.files import safe_name
from kdep_bench.paths import CONFIGS, IS_INSTALLED, PACKAGE
from kdep_bench.signatures import argument_names
from kdep_bench.suite import key_places, schema
from kdep_bench.suite.data_config import (
    check_inline,
    check_keys,
    data_keys,
    with_keys,
    without_unused,
)
from kdep_bench.suite.methods import SAME_STUDENT, row_name
from kdep_bench.suite.schema import (
    MODELS,
    NAME_LIMIT,
    NEEDS,
    Assistant,
    Budget,
    Json,
    Seeds,
    Suite,
    SuiteFile,
    TransferPart,
    TunedTeacher,
    Variant,
    method_needs,
    weights_argument,
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
# Kinds whose complete config may be written in a suite -> a key that every such config has.
COMPLETE_BY_KEY = {"data": "type", "student": "backbone", "claim": "kind"}


def config_files(kind: str, configs: Path = CONFIGS) -> dict[str, Path]:
    """The files of the configs of a kind ('method', 'suite', ...) by name, sorted.

    The files are in `configs`; if this is CONFIGS, in all `config_folders`.

    Raises:
        KdepError: two folders have a config with the same name.
    """
    files: dict[str, Path] = {}
    for folder in config_folders() if configs == CONFIGS else [configs]:
        for path in (folder / FOLDERS[kind]).glob("*.py"):
            if path.stem == "__init__":
                continue
            if path.stem in files:
                first = files[path.stem]
                raise KdepError(
                    f"two {kind} configs are named {path.stem!r}: {first} and {path}",
                    fix=f"rename {path if first.is_relative_to(CONFIGS) else first}",
                )
            files[path.stem] = path
    return dict(sorted(files.items()))


def names(kind: str, configs: Path = CONFIGS) -> list[str]:
    """The names of the configs of a kind, sorted."""
    return list(config_files(kind, configs))


def config_folders() -> list[Path]:
    """The configs folders of the project, of the user and of plug-ins, with sub-folders in FOLDERS.

    The user's folders are $KDEP_CONFIGS and, if the project is installed from a wheel, ./configs. A
    plug-in is a package with an entry point in the group `kdep_bench.configs`; its value is the
    name of the package with the configs.

    Raises:
        KdepError: the folder of $KDEP_CONFIGS or of a plug-in does not exist.
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
    """The configs folders of the installed plug-ins; see `config_folders`."""
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
    """All plain variables of an mmengine config; imported classes as strings with their path.

    Raises:
        KdepError: the file cannot be read, or its code raises an exception.
    """
    from mmengine.config import Config
    from mmengine.config.config import _lazy2string

    try:
        cfg = Config.fromfile(path, lazy_import=True)
    except (KdepError, KeyboardInterrupt):
        raise
    except PackageNotFoundError as e:
        raise KdepError(
            f"the config {path} imports a module that does not exist ({e.name})",
            expected="relative imports of other configs in `with read_base():`, such as "
            "`from .pocket import suite`",
            fix=f"correct the imports in {path}",
        ) from e
    except SyntaxError as e:
        raise KdepError(
            f"the config {path} is not valid Python in line {e.lineno}: {e.msg}",
            fix="correct that line, or an earlier line with an unclosed bracket or quote",
        ) from e
    except BaseException as e:  # a config is code and can raise anything, also SystemExit
        if (error := _missing_import(path)) is not None:
            raise error from e
        raise KdepError(
            f"the config {path} cannot be read ({type(e).__name__}: {e})",
            expected="Python code that assigns dicts, and imports other configs in `with "
            "read_base():`",
            fix=f"correct {path}",
        ) from e
    plain = _lazy2string(cfg._cfg_dict._to_lazy_dict(), dict)
    return {k: v for k, v in plain.items() if k not in cfg._imported_names and k != "read_base"}


def _missing_import(path: Path) -> KdepError | None:
    """The error for a relative import in the config `path` whose file does not exist, or None."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            parents = [".."] * (node.level - 1)
            file = Path(*parents, *node.module.split(".")).with_suffix(".py")
            if not (path.parent / file).is_file():
                return _import_error(path, node, file)
    return None


def _import_error(path: Path, node: ast.ImportFrom, file: Path) -> KdepError:
    """The error for a relative import of a missing file.

    If the project has a config of that name, the error shows how to import it.

    `file`: the imported file, relative to the folder of the config `path`.
    """
    missing = os.path.normpath(path.absolute().parent / file)
    statement = ast.unparse(node)
    problem = f"the config {path} has the import `{statement}`, but {missing} does not exist"
    names = [alias.name for alias in node.names]
    kind = next((name for name in names if name in FOLDERS), "suite")
    project_file = CONFIGS / FOLDERS[kind] / file
    if not project_file.is_file():
        return KdepError(problem, fix=f"correct the import in {path}")
    module = _import_path(path, project_file)
    imported_names = statement.partition(" import ")[2]
    return KdepError(
        problem,
        expected="an import relative to the folder of the config",
        fix=f"write `from {module} import {imported_names}`"
        if module
        else f"move {path.name} to {project_file.parent}",
    )


def _import_path(path: Path, project_file: Path) -> str | None:
    """The module name with which the config `path` can import a config of the project.

    None if a folder between them has a name that is not an identifier.
    """
    if IS_INSTALLED:
        parts = os.path.relpath(project_file.with_suffix(""), CONFIGS).split(os.sep)
        return ".".join([PACKAGE.name, CONFIGS.name, *parts])
    target = os.path.realpath(project_file.with_suffix(""))
    parts = os.path.relpath(target, os.path.realpath(path.parent)).split(os.sep)
    n_parents = parts.count("..")
    if not all(part.isidentifier() for part in parts[n_parents:]):
        return None
    return "." * (n_parents + 1) + ".".join(parts[n_parents:])


def _json(value: Any, where: str) -> Any:
    """`value` as plain JSON (tuples become lists).

    Raises:
        KdepError: it contains NaN, or a value that is not a number, string, list or dict.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise KdepError(
            f"the config {where} contains a value that is not plain data ({e})",
            expected="numbers, strings, lists, dicts and imported classes",
            fix="replace this value",
        ) from None


# What to do about a path of a file or folder in place of a name, where it is not a config.
_IF_PATH = {
    "data": "for a folder of your images, run kdep-bench init FOLDER",
    "teacher": "for your own weights, write a config in configs/teachers/ (docs/own_data.md)",
}


_MOST_LISTED = 20  # of more configs than these, an error names the command that lists them


def _listed_by(kind: str, files: Mapping[str, Path]) -> str | None:
    """The fix for an unknown config: the command that lists the configs of its kind, `files`.

    None if the error itself can list them.
    """
    if len(files) <= _MOST_LISTED:
        return None
    command = "data-sets" if kind == "data" else FOLDERS[kind]
    return f"choose one that `kdep-bench {command}` lists"


def load_config(kind: str, name: str, configs: Path = CONFIGS, place: str = "") -> Json:
    """The dict that the config file `name` of a kind defines, as plain JSON.

    `place`: where the name was found, for errors.

    Raises:
        KdepError: there is no config of that name, or its file does not define the dict.
    """
    files = config_files(kind, configs)
    if name not in files:
        listed_by = _listed_by(kind, files)
        error = unknown_name(f"{kind} config", name, files, place=place, otherwise=listed_by)
        if os.sep in name:
            to_folder = f"put the file into $KDEP_CONFIGS/{FOLDERS[kind]}/ and write its name"
            fix = f"{_IF_PATH.get(kind, to_folder)}; or {error.fix}"
            raise KdepError(error.problem, fix=fix)
        raise error
    return read_dict(kind, files[name])


def read_dict(kind: str, path: Path) -> Json:
    """The dict named `kind` that a config file defines, as plain JSON.

    Raises:
        KdepError: the file cannot be read, or does not define the dict.
    """
    variables = read_config(path)
    if not isinstance(variables.get(kind), dict):
        raise KdepError(
            f"the config {path} defines no dict named {kind!r} "
            f"(but {', '.join(sorted(variables)) or 'nothing'})",
            fix=f"write `{kind} = dict(...)` in this file",
        )
    return _json(variables[kind], str(path))


def merged(base: Json, overrides: Json, where: str) -> Json:
    """`base` with `overrides` merged into it, recursively.

    A dict of `overrides` with `_delete_=True` replaces the dict of the base instead.

    Args:
        base: a config.
        overrides: the values to change.
        where: what an error calls the config.

    Raises:
        KdepError: a key of an override is not in the base, and is no argument of the class in
            `type`.
    """
    if overrides.get("_delete_"):
        return {k: v for k, v in overrides.items() if k != "_delete_"}
    out, faults = copy.deepcopy(base), Faults()
    for key, value in overrides.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            with faults.collect():
                out[key] = merged(old, value, f"{where}.{key}")
        elif key in base:
            out[key] = (
                {k: v for k, v in value.items() if k != "_delete_"}
                if isinstance(value, dict)
                else value
            )
        elif key in (valid_keys := {*base, *argument_names({**base, **overrides}.get("type"))}):
            out[key] = value
        else:
            # A user may write a key of a nested dict one level too high: iters of recipe.
            outer = [k for k, v in base.items() if isinstance(v, dict) and key in v]
            fix = " or ".join(f"write {k}=dict({key}=...)" for k in outer) or None
            otherwise = key_places.fix(key)
            faults.add(
                unknown_name("key", key, valid_keys, place=where, fix=fix, otherwise=otherwise)
            )
    faults.raise_any(where)
    return out


def _claim_keys() -> Json:
    """The keys of a claim, all with the value None; `a` and `b` have the keys of a side."""
    from kdep_bench.results.claims.schema import Claim, Side

    sides = {side: dict.fromkeys(Side.model_fields) for side in ("a", "b")}
    return {**dict.fromkeys(Claim.model_fields), **sides}


def _overridden(kind: str, ref: Json, configs: Path, place: str) -> Json:
    """The config `ref["base"]` with the other entries of `ref` as overrides."""
    base = load_config(kind, ref["base"], configs, place)
    base.setdefault("name", ref["base"])
    overrides = {k: v for k, v in ref.items() if k != "base"}
    # Keys that overrides may set although the base does not have them.
    keys = dict.fromkeys(MODELS[kind].model_fields)
    if kind == "data":
        keys |= data_keys({**base, **overrides}) or {}
    if kind == "claim":
        keys |= _claim_keys()
    if kind == "teacher":
        keys["card"] = dict.fromkeys(("trained_on", "blocks", "heads"))
    if kind == "method":
        keys["teacher"] = dict.fromkeys(Assistant.model_fields)
        keys["transfer"] = dict.fromkeys(TransferPart.model_fields)
    name = overrides.get("name", ref["base"])
    config = merged(with_keys(base, keys), overrides, f"{kind} {name!r}")
    return without_unused(config, base, overrides)


def resolve(kind: str, ref: Any, configs: Path = CONFIGS, place: str = "") -> Json:
    """The checked config that a suite refers to.

    Args:
        kind: the kind of config, a key of FOLDERS.
        ref: a file name in the folder of that kind, or dict(base=..., <overrides>). For the kinds
            of COMPLETE_BY_KEY it may also be a complete config, for data
            dict(type=..., name=..., ...). Overrides of data may add every key that its `type`
            accepts.
        configs: folder of all configs.
        place: where `ref` is written, for errors; "" for the suite itself.

    Raises:
        KdepError: a name or key is unknown, or `ref` has another form.
    """
    is_complete = isinstance(ref, dict) and "base" not in ref and COMPLETE_BY_KEY.get(kind) in ref
    if isinstance(ref, str):
        config = load_config(kind, ref, configs, place)
        config.setdefault("name", ref)
    elif is_complete:
        config = dict(ref)
    elif isinstance(ref, dict) and isinstance(ref.get("base"), str):
        config = _overridden(kind, ref, configs, place)
    else:
        key = COMPLETE_BY_KEY.get(kind)
        complete_form = f", or the complete config as dict({key}=..., name=..., ...)" if key else ""
        raise KdepError(
            f"the {kind} {ref!r:.80} in {place or 'the suite'} is neither a name nor a dict with "
            "'base'",
            expected=f"the name of a file in configs/{FOLDERS[kind]}/ or dict(base='...', "
            f"<overrides>){complete_form}",
            fix=f"write one of these as the {kind}",
        )
    if is_complete and kind == "data":
        check_inline(config)
    if is_complete and kind == "claim":
        merged(_claim_keys(), config, f"claim {config.get('name')!r:.80}")
    where = f"{kind} {config.get('name', ref)!r:.80}"
    if isinstance(ref, str) and str(config.get("name")) != ref:
        where += f" ({config_files(kind, configs)[ref]})"
    check(MODELS[kind], config, where)
    if kind == "data":
        check_keys(config)
    if kind == "student":
        _check_initial_weights(config)
    if kind == "claim":
        from kdep_bench.results.claims.schema import make_claim

        make_claim(config)
    safe_name(config["name"], f"{kind} name")
    if len(config["name"]) > NAME_LIMIT:
        raise KdepError(
            f"the {kind} name {config['name']!r} has {len(config['name'])} characters",
            expected=f"at most {NAME_LIMIT}",
            fix="shorten it",
        )
    return config


def _check_initial_weights(student: Json) -> None:
    """Checks that a student with trained initial weights states whether labels were used for them.

    Otherwise its rows would say that no labels were used. Copied weights (`copied`) are those of a
    network that was trained with ImageNet's labels.

    Raises:
        KdepError: the student's card has no `labels_used`, or not True for copied weights.
    """
    argument = weights_argument(student)
    stated = (student.get("card") or {}).get("labels_used")
    is_copied = argument == "copied"
    if argument is None or stated is True or (stated is False and not is_copied):
        return
    raise KdepError(
        f"the student {student['name']!r} has trained initial weights (`{argument}` in its "
        f"`backbone`), but its card has labels_used = {stated}",
        expected="True, because the copied weights were trained with ImageNet's labels"
        if is_copied
        else "True or False: whether these weights were trained with labels",
        fix=f"set card=dict(labels_used={'True' if is_copied else '...'}) in the student "
        f"{student['name']!r}, or remove `{argument}` from its `backbone`",
    )


_Model = TypeVar("_Model", bound=BaseModel)


# Keys of a method whose dict has a `type`; a user may write the name of the type alone.
_TYPED = ("objective", "align", "transform", "augment", "optimizer")


def check(model: type[_Model], value: Any, where: str) -> _Model:
    """`value` validated as `model`.

    Raises:
        KdepError: lists the faults of `value`; for an unknown key it suggests similar keys.
    """
    try:
        return model.model_validate(value)
    except ValidationError as e:
        by_path: dict[tuple[Any, ...], list[Any]] = {}
        for fault in e.errors(include_url=False):
            by_path.setdefault((_path(value, fault), fault["type"] == "missing"), []).append(fault)
    unknown = [
        path for (path, _), faults in by_path.items() if faults[0]["type"] == "extra_forbidden"
    ]
    listed = Faults()
    # Unknown keys first, because they are often misspelt ones; missing keys last.
    ordered = sorted(by_path.items(), key=lambda item: (item[0][0] not in unknown, item[0][1]))
    for (path, is_missing), faults in ordered:
        misspelt = [str(p[-1]) for p in unknown if p[:-1] == path[:-1]]
        if not (is_missing and difflib.get_close_matches(str(path[-1]), misspelt)):
            listed.add(_fault(model, [str(part) for part in path], faults, where))
    error = listed.error(f"the {where}")
    assert error is not None
    raise error


def _path(value: Any, fault: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The keys and list positions that lead to a fault in `value`.

    pydantic also names the alternatives of a union type, which are left out.
    """
    path: list[str | int] = []
    for part in fault["loc"]:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if fault["type"] != "missing":
                continue
        path.append(part)
    return tuple(path)


def _fault(model: type[BaseModel], path: list[str], faults: list[Any], where: str) -> KdepError:
    """The error for the faults that pydantic found at one place (one per alternative type)."""
    fault = faults[0]
    if fault["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1])
        inside = f"`{'.'.join(path[:-1])}` of " if path[:-1] else ""
        # A search has keys with the names of those of a suite.
        otherwise = key_places.fix(path[-1]) if model.__module__ == schema.__name__ else None
        place = f"{inside}the {where}"
        return unknown_name("key", path[-1], fields, place=place, otherwise=otherwise)
    if fault["type"] == "missing":
        return KdepError(f"the {where} lacks the key {'.'.join(path)!r}", fix="add it")
    wrong_value = fault.get("input")
    expected = " or ".join(dict.fromkeys(map(expected_text, faults)))
    field = _fields_at(model, path[:-1]).get(path[-1]) if path else None
    if field is not None and field.description:
        expected = field.description
    key = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path).removeprefix(".")
    fix = f"add an entry to `{key}`" if fault["type"] == "too_short" else f"correct `{key}`"
    if fault["type"] == "dict_type" and isinstance(wrong_value, str) and key in _TYPED:
        fix = f"write {key}=dict(type={wrong_value!r:.80})"
    if fault["type"] == "model_type":  # "a dictionary or instance of Seeds"
        expected = f"dict({', '.join(f'{name}=...' for name in _fields_at(model, path))})"
    if fault["type"] == "list_type" and isinstance(wrong_value, str | int | float):
        expected, fix = "a list", f"write {path[-1]}=[{wrong_value!r:.80}]"
        if path[0] == "seeds" and wrong_value in range(2, 11):  # probably a number of seeds
            seeds = list(range(int(wrong_value)))
            fix = f"write {path[-1]}={seeds} for {wrong_value} seeds, or [{wrong_value}] for one"
    if not path:
        problem, fix = f"the {where} is {wrong_value!r:.80}", f"write {expected}"
        return KdepError(problem, fix=fix)
    return KdepError(f"the {where} has {key} = {wrong_value!r:.80}", expected=expected, fix=fix)


def _fields_at(model: type[BaseModel], path: list[str]) -> dict[str, FieldInfo]:
    """The fields, by name, of the model that `path` leads to."""
    for part in path:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return model.model_fields


def _check_unique(entries: str, names: list[str], place: str = "the suite") -> None:
    """Raises KdepError if a name occurs twice; `entries` and `place` are for the error."""
    duplicates = sorted(n for n, count in Counter(names).items() if count > 1)
    if duplicates:
        remainder = f" and {len(duplicates) - 5} others" if len(duplicates) > 5 else ""
        are_numbers = "seed" in entries or entries == "data fraction"
        raise KdepError(
            f"{place} lists the {entries} {', '.join(duplicates[:5])}{remainder} more than once",
            fix="remove the duplicates" + ("" if are_numbers else ", or give each its own `name`"),
        )


def with_assistants(method: Json, configs: Path, taught_methods: tuple[str, ...] = ()) -> Json:
    """`method` with the configs of its teachers resolved.

    A teacher that the suite itself pre-trains (an assistant) has a method, whose teachers are
    resolved as well, and so on.

    Args:
        method: a resolved method.
        configs: folder of all configs.
        taught_methods: names of the methods that this method is a teacher of, directly or
            indirectly.

    Raises:
        KdepError: the teachers form a loop, or a config is unknown.
    """
    chain = (*taught_methods, method["name"])
    if method["name"] in taught_methods:
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
    """The config of an intermediate teacher with its student and method resolved.

    `chain`: names of the methods that it is a teacher of, see `with_assistants`.
    """
    assistant = check(Assistant, ref, where)
    is_same = assistant.student == SAME_STUDENT
    return {
        "student": SAME_STUDENT
        if is_same
        else resolve("student", assistant.student, configs, where),
        "method": with_assistants(
            resolve("method", assistant.method, configs, where), configs, chain
        ),
        "epochs": assistant.epochs,
        **({} if assistant.batch is None else {"batch": assistant.batch}),
    }


def _role_teacher(role: str, ref: Any, method: str, configs: Path, chain: tuple[str, ...]) -> Any:
    """One of the `teachers` of a method: "suite", a teacher config or an intermediate teacher."""
    where = f"method {method!r}.teachers.{role}"
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,23}", role):
        raise KdepError(
            f"the {where} has a role that is not a plain name",
            expected="up to 24 lower-case letters, digits and underscores, a letter first",
            fix="rename the role in the method's `teachers`",
        )
    if ref == "suite":
        return ref
    if isinstance(ref, dict) and "base" not in ref:
        return _assistant(ref, where, configs, chain)
    return resolve("teacher", ref, configs, where)


def _with_references(method: Json, configs: Path) -> Json:
    """`method` with the configs that it names (of its teachers and pre-training) resolved."""
    return with_assistants(with_transfer(method, configs), configs)


# Keys of a config with `transfer` that describe the transfer method. All others describe a
# pre-training and must be in the config that `pretrained_by` names.
_TRANSFER_KEYS = ("name", "family", "source", "reconstruction", "about")


def with_transfer(method: Json, configs: Path) -> Json:
    """Resolves a transfer method; a method without `transfer` is returned as it is.

    Returns:
        the config that `pretrained_by` names, with an entry `transfer`: the transfer method, with
        its name and source and the resolved configs of its teacher.

    Raises:
        KdepError: the config describes both a pre-training and a transfer method, has
            `pretrained_by` without `transfer`, or `pretrained_by` names a transfer method.
    """
    name, allowed_keys = method["name"], {*_TRANSFER_KEYS, "students", "card"}
    if method.get("transfer") is None:
        if method.get("pretrained_by") is not None:
            raise KdepError(
                f"method {name!r} has `pretrained_by` but no `transfer`",
                fix="remove `pretrained_by`, or add the transfer method",
            )
        return {k: v for k, v in method.items() if k not in ("transfer", "pretrained_by")}
    pretrain_keys = {k for k, v in method.items() if v not in (None, False)} - allowed_keys
    if pretrain_keys := sorted(pretrain_keys - {"transfer", "pretrained_by", "steps"}):
        raise KdepError(
            f"method {name!r} has `transfer` and also sets {', '.join(pretrain_keys)}",
            expected="a config of a transfer method, which names its pre-training by "
            "`pretrained_by`",
            fix="move `transfer` into a separate method config, with pretrained_by=<the method>",
        )
    part = check(TransferPart, method["transfer"], f"method {name!r}.transfer")
    place = f"`pretrained_by` of method {name!r}"
    pretraining = resolve("method", method.get("pretrained_by") or "scratch", configs, place)
    if pretraining.get("transfer") is not None:
        raise KdepError(
            f"method {name!r} is pre-trained by {pretraining['name']!r}, which is a transfer "
            "method",
            fix="name a pre-training in `pretrained_by`, such as 'kdep' or 'scratch'",
        )
    out = {k: v for k, v in pretraining.items() if k not in ("transfer", "pretrained_by")}
    transfer = {**method["transfer"], **{k: method[k] for k in _TRANSFER_KEYS if k in method}}
    if part.teacher == "self":
        transfer["teacher"] = {"student": None, "method": with_assistants(out, configs)}
    elif part.teacher is not None:
        transfer["teacher"] = _tuned_teacher(part.teacher, name, configs)
    if method.get("students") is not None:
        out["students"] = method["students"]
    return {**out, "transfer": transfer}


def _tuned_teacher(teacher: Json, name: str, configs: Path) -> Json:
    """The teacher of the transfer method `name`, with its student and method resolved."""
    where = f"method {name!r}.transfer.teacher"
    reference = check(TunedTeacher, teacher, where)
    method = resolve("method", reference.method, configs, where)
    if method.get("transfer") is not None:
        raise KdepError(
            f"the teacher of the transfer method {name!r} is transferred with {method['name']!r}",
            expected="a method of pre-training; `transfer` of the teacher names a transfer method",
            fix="name a pre-training as its method, such as 'kdep' or 'supervised'",
        )
    transfer = reference.transfer
    if transfer is not None and "type" not in transfer:
        raise KdepError(
            f"`transfer` in the teacher of the transfer method {name!r} has no `type`",
            fix="add type=<class of a transfer method>, or remove `transfer` there",
        )
    return {
        **({} if transfer is None else {"transfer": transfer}),
        "student": resolve("student", reference.student, configs, where),
        "method": with_assistants(method, configs),
    }


def find_config(kind: str, ref: str, configs: Path = CONFIGS) -> Path:
    """The file of a suite or search that is given as a path or as the name of a config.

    Raises:
        KdepError: there is no such file or config.
    """
    path, files = Path(ref), config_files(kind, configs)
    if ref not in files and (path.suffix == ".py" or path.is_file() or path.is_dir()):
        if path.is_dir():
            raise KdepError(
                f"{ref} is a folder, not a {kind}",
                expected=f"the path of a {kind} config, a file that ends with .py",
                fix="add the name of the file",
            )
        if not path.is_file():
            raise KdepError(
                f"the {kind} file {ref} does not exist",
                fix=f"correct the path, or give a name (kdep-bench {FOLDERS[kind]} lists them)",
            )
        return path
    if ref not in files:
        raise unknown_name(kind, ref, files, otherwise=_listed_by(kind, files))
    return files[ref]


def load_suite(ref: str | Path, configs: Path | None = None) -> Suite:
    """Reads, resolves and checks a suite.

    Args:
        ref: path of a suite config, or the name of one in `configs/suites/`.
        configs: folder with one folder per kind of config; default: the repository's `configs/`.

    Raises:
        KdepError: a key or name is unknown (the error suggests similar ones), a value has a wrong
            type, a list is empty, or a name occurs twice.
    """
    configs = configs or CONFIGS
    path = find_config("suite", str(ref), configs)
    return build_suite(read_dict("suite", path), configs, f"suite {path}")


def build_suite(raw: Json, configs: Path = CONFIGS, where: str = "suite") -> Suite:
    """A Suite from the plain dict of a suite file; see `load_suite`.

    `where`: what an error calls the suite.
    """
    faults = Faults()
    file = None
    with faults.collect():
        file = check(SuiteFile, raw, "suite")

    def resolve_all(kind: str, refs: Any) -> list[Json]:
        configs_of_kind = []
        for ref in refs if isinstance(refs, list) else []:
            with faults.collect():
                config = resolve(kind, ref, configs)
                configs_of_kind.append(
                    _with_references(config, configs) if kind == "method" else config
                )
        return configs_of_kind

    data = resolve_all("data", [raw["data"]] if "data" in raw else [])
    students = resolve_all("student", raw.get("students"))
    methods = resolve_all("method", raw.get("methods"))
    tasks = resolve_all("task", raw.get("tasks"))
    probes = resolve_all("probe", raw.get("probes"))
    claims = resolve_all("claim", raw.get("claims"))
    teachers: dict[str, Json | None] = {}
    if file is None:
        with faults.collect():
            if isinstance(raw.get("teacher"), str):
                resolve("teacher", raw["teacher"], configs)
        error = faults.error(f"the {where}")
        assert error is not None
        raise error
    with faults.collect():
        safe_name(file.name, "suite name")
    if len(students) == len(file.students) or isinstance(file.teacher, str):
        with faults.collect():
            teachers = _teachers(file.teacher, students, configs)
    for kind, entries in (
        ("student", students),
        ("task", tasks),
        ("probe", probes),
        ("claim", claims),
    ):
        with faults.collect():
            _check_unique(kind, [entry["name"] for entry in entries])
    with faults.collect():
        _check_unique("method", [row_name(m) for m in methods])
    with faults.collect():
        _check_fractions(file.shares)
    known_students = {*names("student", configs), *(s["name"] for s in students)}
    _check_names_of_methods(methods, known_students, faults)
    with faults.collect():
        _check_seeds(file.seeds)
    resolved_trackers: list[Json] = []
    with faults.collect():
        resolved_trackers = trackers.resolve(file.runtime.trackers)
    faults.raise_any(f"the {where}")
    suite = Suite(
        name=file.name,
        about=file.about,
        data=data[0],
        teachers=teachers,
        students=students,
        methods=methods,
        tasks=tasks,
        probes=probes,
        claims=claims,
        shares=file.shares,
        share_by=file.share_by,
        keep_models=file.keep_models,
        views=file.views,
        budget=file.budget,
        seeds=file.seeds,
        runtime=file.runtime.model_copy(update={"trackers": resolved_trackers}),
    )
    variants = []
    for i, variant in enumerate(file.variants):
        with faults.collect():
            variants.append(_variant(suite, variant, i, configs))
    faults.raise_any(f"the {where}")
    return suite.model_copy(update={"variants": variants})


def _check_names_of_methods(methods: list[Json], students: set[str], faults: Faults) -> None:
    """Adds a fault for each unknown student or input that a method names."""
    for method in methods:
        where = f"method {method['name']!r}"
        for student in method.get("students") or []:
            if student not in students:
                faults.add(unknown_name("student", student, students, place=where))
        for name in method.get("needs") or []:
            if name not in NEEDS:
                faults.add(unknown_name("input", name, NEEDS, place=f"`needs` of {where}"))


def _check_seeds(seeds: Seeds) -> None:
    """Raises KdepError for a seed that is listed twice, or seeds that cannot be paired."""
    _check_unique("pretrain seed", [str(s) for s in seeds.pretrain])
    _check_unique("transfer seed", [str(s) for s in seeds.transfer])
    if seeds.pairs == "diagonal" and len(seeds.pretrain) != len(seeds.transfer):
        raise KdepError(
            f"seeds.pairs is 'diagonal' but there are {len(seeds.pretrain)} pre-training and "
            f"{len(seeds.transfer)} transfer seeds",
            expected="the same number of both",
            fix="add seeds, or remove seeds.pairs",
        )


def _variant(suite: Suite, raw: Json, number: int, configs: Path) -> Suite:
    """The suite with the values that its variant `raw` (at position `number`) replaces."""
    variant = check(Variant, raw, f"suite's variants[{number}]")
    update: Json = {}
    if variant.teacher is not None:
        update["teachers"] = _teachers(variant.teacher, suite.students, configs)
    if variant.methods is not None:
        resolved = [resolve("method", m, configs) for m in variant.methods]
        update["methods"] = [_with_references(m, configs) for m in resolved]
        _check_unique(
            "method", [row_name(m) for m in update["methods"]], f"variants[{number}] of the suite"
        )
    if variant.shares is not None:
        update["shares"] = _check_fractions(variant.shares)
    budget = suite.budget.model_dump()
    budget = merged(budget, variant.budget, f"budget of the suite's variants[{number}]")
    update["budget"] = check(Budget, budget, f"budget of the suite's variants[{number}]")
    return suite.model_copy(update=update)


def _check_fractions(fractions: list[float]) -> list[float]:
    """Returns data fractions that are valid; raises KdepError otherwise."""
    _check_unique("data fraction", [str(s) for s in fractions])
    if wrong := [f"{fraction:g}" for fraction in fractions if not 0 < fraction <= 1]:
        raise KdepError(
            f"the suite has the data fraction{'s' * (len(wrong) > 1)} {', '.join(wrong)} in "
            "`shares`",
            expected="numbers above 0 and at most 1; 1 is all images",
            fix="correct `shares` in the suite",
        )
    return fractions


def _teachers(ref: Any, students: list[Json], configs: Path) -> dict[str, Json | None]:
    """Student name -> teacher config; `ref` is one reference for all students or a dict of them."""
    names = [s["name"] for s in students]
    if ref is None:
        return dict.fromkeys(names)
    if isinstance(ref, str) or (isinstance(ref, dict) and "base" in ref):
        return dict.fromkeys(names, resolve("teacher", ref, configs))
    if not isinstance(ref, dict) or "type" in ref:
        is_complete = isinstance(ref, dict)
        raise KdepError(
            f"the suite has teacher = {ref!r:.80}",
            expected="the name of a teacher, dict(base=NAME, ...), or a dict with one name per "
            "student",
            fix="write the dict into $KDEP_CONFIGS/teachers/NAME.py, as teacher = dict(...), and "
            "its NAME into the suite"
            if is_complete
            else "correct `teacher` in the suite",
        )
    for name in ref:
        if name not in names:
            raise unknown_name("student", name, names, place="`teacher` of the suite")
    missing = [name for name in names if name not in ref]
    if missing:
        raise KdepError(
            f"suite.teacher has no teacher for the student {', '.join(missing)}",
            fix="add one per student (None for a student without a teacher)",
        )
    return {
        name: None if ref[name] is None else resolve("teacher", ref[name], configs)
        for name in names
    }
