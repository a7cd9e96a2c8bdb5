"""Checks constructor arguments of a config's `type` against its source code, without importing it.

So a misspelt class or a wrong argument is found when a suite is planned, in milliseconds and
without torch. A `type` must name an object of an installed package. Arguments are checked if the
source of the class is available; otherwise the stage that builds the object reports errors.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kdep_bench import bounds
from kdep_bench.errors import KdepError, expected_text, unknown_name
from kdep_bench.faults import Faults

ALIASES = {"svd": "kdep_bench.features.aligners.Svd"}
# Base classes whose constructors have no arguments.
_BASES_WITHOUT_ARGUMENTS = {"object", "ABC", "nn.Module", "torch.nn.Module", "Module"}
# Packages whose registries have backbones; a name without a package is looked up in the first.
_REGISTRIES = ("mmpretrain", "mmdet", "mmseg")
_MAX_CHOICES = 8  # largest number of classes that an error lists
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class _Literal:
    """`typing.Literal` in annotations; its choices do not accept equal values of other types."""

    def __class_getitem__(cls, choices: Any) -> Any:
        return Annotated[Literal[choices], bounds.SameType()]


# Names that annotations of plain data may contain.
_TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "Any": Any,
    "None": None,
    "Sequence": Sequence,
    "Mapping": Mapping,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    **{k: v for k, v in vars(bounds).items() if k[0].isupper() and k not in ("Annotated", "Field")},
    "Literal": _Literal,
}


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor.

    Attributes:
        name: name of the argument.
        annotation: its type as written in the source; "" if there is none.
        required: whether it has no default value.
        default: the default value if it is made of literals, otherwise None.
    """

    name: str
    annotation: str
    required: bool
    default: Any = None


@dataclass(frozen=True)
class Signature:
    """The arguments of a constructor or function.

    Attributes:
        arguments: the arguments by name.
        accepts_any: whether it also accepts arguments with any other name (**kwargs).
    """

    arguments: Mapping[str, Argument]
    accepts_any: bool = False


def resolve_alias(kind: Any) -> str:
    """The dotted path of a `type`; a short name ("svd") is replaced by its path."""
    return ALIASES.get(str(kind), str(kind))


@cache
def signature(path: str) -> Signature | None:
    """The signature of the class or function at a dotted path.

    None if it is not found, or if it is a class without a constructor and a parent is not found.
    """
    definition = _find(resolve_alias(path))
    if definition is None:
        return None
    module, node = definition
    if not isinstance(node, ast.ClassDef):
        return _arguments(module, node, skip=0)
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    init = next((n for n in methods if n.name == "__init__"), None)
    parents = [_parent(module, base) for base in node.bases]
    if init is None:
        known_parents = [parent for parent in parents if parent is not None]
        all_known = known_parents and len(known_parents) == len(parents)
        return known_parents[0] if all_known else None
    declared = _arguments(module, init, skip=1)
    if not declared.accepts_any:
        return declared
    # Assumption: the class passes **kwargs to its first parent that has arguments.
    inherited = next(
        (parent for parent in parents if parent is not None and parent.arguments), None
    )
    if inherited is not None:
        return Signature({**inherited.arguments, **declared.arguments}, inherited.accepts_any)
    return Signature(declared.arguments, not path.startswith("kdep_bench."))


@cache
def timm_class(model: str) -> str | None:
    """The dotted path of the class of a network of timm, from timm's source; None if not known.

    `model`: timm's name, such as "vit_tiny_patch16_224". The function of that name in timm.models
    states the class that it returns. The source is searched as text, because parsing takes longer.
    """
    package, name = _file("timm.models"), model.partition(".")[0]
    for file in sorted(package.parent.glob("*.py")) if package is not None else ():
        _, definition, rest = file.read_text("utf-8").partition(f"\ndef {name}(")
        match = re.match(r".*\) -> (\w+):", rest) if definition else None
        if match is not None:
            return _full_name(f"timm.models.{file.stem}", match[1])
    return None


def argument_names(kind: Any) -> Collection[str]:
    """Names of the arguments of a class; empty if they are not known.

    `kind`: value of a config's `type`; also the short name of an optimiser.
    """
    if not isinstance(kind, str):
        return ()
    path = optimizer_path(kind) or resolve_alias(kind)
    class_signature, definition = signature(path), _find(path)
    is_class = definition is not None and isinstance(definition[1], ast.ClassDef)
    return class_signature.arguments.keys() if class_signature is not None and is_class else ()


def argument_value(config: Mapping[str, Any], name: str) -> Any:
    """The value of an argument of a config's `type`, or its default; None if neither is known."""
    if name in config:
        return config[name]
    constructor = signature(resolve_alias(config["type"]))
    argument = constructor.arguments.get(name) if constructor is not None else None
    return argument.default if argument is not None else None


@cache
def class_value(path: str, name: str) -> Any:
    """The value of a class attribute, also an inherited one, from the source code.

    None if the class or the attribute is not found, or if its value is not made of literals.
    """
    module, node = _find(resolve_alias(path)) or ("", None)
    if not isinstance(node, ast.ClassDef):
        return None
    for item in node.body:
        targets = item.targets if isinstance(item, ast.Assign) else []
        if isinstance(item, ast.AnnAssign):
            targets = [item.target]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            value = getattr(item, "value", None)
            return None if value is None else _literal(module, value)
    for base in node.bases:
        full = _full_name(module, ast.unparse(base))
        value = class_value(full, name) if full else None
        if value is not None:
            return value
    return None


@cache
def module_value(module: str, name: str) -> Any:
    """The value of a module's constant, from the source code; None as for `class_value`."""
    tree = _tree(module)
    for item in tree.body if tree is not None else ():
        targets = item.targets if isinstance(item, ast.Assign) else []
        if isinstance(item, ast.AnnAssign):
            targets = [item.target]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            value = getattr(item, "value", None)
            return None if value is None else _literal(module, value)
    return None


def check_arguments(config: Any, where: str, passed_by_stage: Collection[str] = ()) -> None:
    """Checks the arguments of a config against the constructor of its `type`.

    Args:
        config: dict(type=<dotted path>, <arguments>); anything else is accepted.
        where: what the config is called in errors.
        passed_by_stage: names of arguments that the stage passes, so that the config need not.

    Raises:
        KdepError: there is no `type` or it names no class, an argument is unknown or missing, or a
            value has another type or is out of range.
    """
    if not isinstance(config, Mapping):
        return
    check_type(config, where)
    path = resolve_alias(config["type"])
    constructor = signature(path)
    if constructor is None:
        return
    args = {k: v for k, v in config.items() if k != "type"}
    name = path.rpartition(".")[2]
    faults = Faults()
    valid = constructor.arguments.keys() - set(passed_by_stage)
    unknown = [] if constructor.accepts_any else [k for k in args if k not in constructor.arguments]
    for key in unknown if valid else [", ".join(unknown)] * bool(unknown):
        faults.add(_unknown_argument(name, where, key, valid))
    for arg in constructor.arguments.values():
        if arg.name in args:
            with faults.collect():
                check_value(arg.annotation, args[arg.name], f"{where} ({name})", arg.name)
            continue
        is_misspelt = difflib.get_close_matches(arg.name, unknown)  # and already reported
        if arg.required and arg.name in valid and not is_misspelt:
            problem = f"{where} lacks the argument {arg.name!r} of {name}"
            faults.add(KdepError(problem, fix="add it"))
    faults.raise_any(where)


def check_type(
    config: Mapping[str, Any], where: str, base: str | None = None, kind_of_type: str = "class"
) -> None:
    """Checks that the `type` of a config names a class or a function.

    A `type` is accepted if its module exists but has no source that could be read.

    Args:
        config: dict(type=..., ...).
        where: what the config is called in errors.
        base: dotted path of the class of which it must be a subclass; None for any class.
        kind_of_type: "class" or "function", for errors.

    Raises:
        KdepError: there is no `type`, or it names nothing or a class of another kind.
    """
    kind = config.get("type")
    if not isinstance(kind, str):
        raise KdepError(
            f"{where} has no `type`" if kind is None else f"{where} has type = {kind!r:.60}",
            expected="type=<class>",
            fix="import the class in the config, or write its dotted path",
        )
    path = resolve_alias(kind)
    if not names_something(path):
        raise KdepError(
            f"{where} has the type {path!r:.120}, which does not exist",
            expected=f"the dotted path of a {kind_of_type}",
            fix=f"correct `type` ({_near(path, base)})",
        )
    if base is not None and derives_from(path, base) is False:
        raise KdepError(
            f"{where} has the type {path!r:.120}, a class of another kind",
            expected=f"a subclass of {base}",
            fix=f"correct `type` ({_choices(path, base) or 'write the dotted path of one'})",
        )


def check_backbone(backbone: Mapping[str, Any], where: str) -> None:
    """Checks that the `type` of a student's backbone names a class.

    It is a dotted path, or a name in an OpenMMLab registry such as "mmpretrain.ResNet".

    Raises:
        KdepError: there is no `type`, or it names no class.
    """
    scope, _, name = str(backbone.get("type", ".")).rpartition(".")
    package = scope or _REGISTRIES[0]
    tree = _tree(f"{package}.models.backbones") if package in _REGISTRIES else None
    if tree is None or not name:
        check_type(backbone, where)
    elif not _defines(f"{package}.models.backbones", name):
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        valid = [f"{package}.{alias.name}" for node in imports for alias in node.names]
        raise unknown_name("type", f"{package}.{name}", valid, place=where)


def _unknown_argument(name: str, where: str, key: str, valid: Collection[str]) -> KdepError:
    """The error for the argument `key` that the class `name` does not have."""
    hint = "an override that changes `type` also needs _delete_=True, or the old arguments stay"
    if not valid:
        return KdepError(
            f"{where} gives {name} arguments ({key}), but {name} has none",
            fix=f"remove them ({hint})",
        )
    error = unknown_name("argument", key, valid, place=f"{where} ({name})")
    if error.fix.startswith("did you mean"):  # misspelt, not an argument of another type
        return error
    return KdepError(error.problem, fix=f"{error.fix} ({hint})")


def check_value(annotation: str, value: Any, where: str, name: str) -> None:
    """Raises KdepError for a value of another type than the annotation, or out of its range.

    Annotations that are not plain data (a Tensor, a class) accept every value.

    Args:
        annotation: the annotation as written in the source, such as "int" or "Positive".
        value: the value in the config.
        where: what the config is called in the error.
        name: name of the argument.
    """
    adapter = _adapter(annotation)
    if adapter is None:
        return
    try:
        adapter.validate_python(value)
    except ValidationError as e:
        faults = e.errors(include_url=False)
        place = f"{name} = {value!r:.60}"
        first = next(iter(faults[0]["loc"]), None)
        if isinstance(first, int) and isinstance(value, Sequence) and first < len(value):
            faults = [fault for fault in faults if fault["loc"][0] == first]
            place = f"{name}[{first}] = {value[first]!r:.60}"  # the wrong entry of a list
        raise KdepError(
            f"{where} has {place}", expected=_expected(faults), fix=f"correct `{name}` of {where}"
        ) from None


def _expected(faults: Sequence[Mapping[str, Any]]) -> str:
    """What a validator accepts, from the faults that it found."""
    texts = [expected_text(fault) for fault in faults]
    if any("number" in text for text in texts) and "a dictionary" in texts:
        # Arguments that accept a number or a dictionary accept the config of a schedule.
        texts[texts.index("a dictionary")] = "the config of a schedule"
    return " or ".join(dict.fromkeys(texts))


@cache
def _adapter(annotation: str) -> TypeAdapter | None:
    """A strict validator for an annotation; None for types that are not plain data."""
    if not annotation:
        return None
    try:
        kind = eval(annotation, {"__builtins__": {}}, dict(_TYPES))
        return TypeAdapter(kind, config=_STRICT)
    except Exception:  # a type that is not plain data: Tensor, a class of the module
        return None


# ---- optimisers ----


@cache
def torch_optimizers() -> Mapping[str, str]:
    """Name -> dotted path of torch's optimisers for dense gradients; empty without torch."""
    tree = _tree("torch.optim")
    if tree is None:
        return {}
    out = {}
    for item in tree.body:
        if isinstance(item, ast.ImportFrom) and (item.module or "").startswith("torch.optim."):
            for alias in item.names:
                if alias.name[0].isupper():
                    out[alias.name] = f"{item.module}.{alias.name}"
    # Optimizer is the base class, LBFGS needs a closure, and SparseAdam needs sparse gradients.
    for name in ("Optimizer", "LBFGS", "SparseAdam"):
        out.pop(name, None)
    return out


def optimizer_path(kind: Any) -> str | None:
    """The dotted path of the torch optimiser with a short name ("SGD"); None for other values."""
    return torch_optimizers().get(kind) if isinstance(kind, str) and "." not in kind else None


# ---- source ----


@cache
def _file(module: str) -> Path | None:
    """The source file of a module, which is not imported; None if there is none."""
    top, _, rest = module.partition(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for place in spec.submodule_search_locations or ():
        base = Path(place, *rest.split(".")) if rest else Path(place)
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if os.path.isfile(file):
                return file
    return None


@cache
def _tree(module: str) -> ast.Module | None:
    """The parsed source of a module, which is not imported; None if it cannot be read."""
    file = _file(module)
    try:
        return None if file is None else ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return None


def _source_module(module: str, item: ast.ImportFrom) -> str:
    """The dotted path of the module from which `item`, a statement of `module`, imports."""
    if not item.level:
        return item.module or ""
    file = _file(module)
    is_package = file is not None and file.name == "__init__.py"
    parts = module.split(".")
    parts = parts[: len(parts) - item.level + is_package]
    return ".".join([*parts, *([item.module] if item.module else [])])


@cache
def names_something(path: str) -> bool:
    """Whether a dotted path names a class, a function or a variable of an installed package.

    True if the module exists but its source cannot be read.
    """
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        return False
    return _find(path) is not None or _defines(module, name)


@cache
def derives_from(path: str, base: str) -> bool | None:
    """Whether the class at a dotted path is `base` or a subclass of it; None if not known."""
    module, node = _find(path) or ("", None)
    if not isinstance(node, ast.ClassDef):
        return None
    if f"{module}.{node.name}" == base:
        return True
    answers = set[bool | None]()
    for parent in node.bases:
        name = ast.unparse(parent)
        full = _full_name(module, name)
        is_plain = name in _BASES_WITHOUT_ARGUMENTS
        answers.add(False if is_plain else None if full is None else derives_from(full, base))
    return True if True in answers else None if None in answers else False


def _module_exists(module: str) -> bool:
    """Whether a module, which may be compiled or a folder, is installed; it is not imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None or not rest:
        return spec is not None
    for place in spec.submodule_search_locations or ():
        base = Path(place, *rest)
        if base.is_dir() or any(base.parent.glob(f"{base.name}.*")):
            return True
    return False


def _defines(module: str, name: str, importers: frozenset[str] = frozenset()) -> bool:
    """Whether a module may define `name`: as a class, function, variable or import, in any block.

    True for every name if the source of an existing module cannot be read, or if it defines the
    function `__getattr__`. `importers`: modules that import all names of this one (for recursion).
    """
    tree = _tree(module)
    if tree is None:
        return _module_exists(module)
    for node in ast.walk(tree):
        defines = False
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defines = node.name in (name, "__getattr__")
        elif isinstance(node, ast.Name):
            defines = node.id == name and isinstance(node.ctx, ast.Store)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defines = any((alias.asname or alias.name) == name for alias in node.names)
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                starred = _source_module(module, node)
                defines = starred not in importers and _defines(starred, name, importers | {module})
        if defines:
            return True
    return False


_Definition = ast.ClassDef | ast.FunctionDef


def _find(path: str) -> tuple[str, _Definition] | None:
    """(module, definition) of the class or function at a dotted path; follows re-exports."""
    for _ in range(8):  # a limit, in case the imports form a loop
        module, _, name = path.rpartition(".")
        tree = _tree(module) if module else None
        if tree is None:
            return None
        for item in tree.body:
            if isinstance(item, ast.ClassDef | ast.FunctionDef) and item.name == name:
                return module, item
        imported = _imported(module, tree, name)
        if imported is None:
            return None
        path = imported
    return None


def _imported(module: str, tree: ast.Module, name: str) -> str | None:
    """The dotted path of the object that a module imports as `name`; None if there is none."""
    for item in tree.body:
        if isinstance(item, ast.ImportFrom):
            for alias in item.names:
                if (alias.asname or alias.name) == name:
                    return f"{_source_module(module, item)}.{alias.name}"
    return None


def _full_name(module: str, name: str) -> str | None:
    """The dotted path of the class that is called `name` in a module; None if it is not known."""
    if "." in name or "[" in name:
        return None
    tree = _tree(module)
    if tree is None:
        return None
    if any(isinstance(n, ast.ClassDef) and n.name == name for n in tree.body):
        return f"{module}.{name}"
    return _imported(module, tree, name)


def _parent(module: str, base: ast.expr) -> Signature | None:
    """The signature of a parent class; None if it is not known."""
    name = ast.unparse(base)
    if name in _BASES_WITHOUT_ARGUMENTS:
        return Signature({})
    full = _full_name(module, name)
    return None if full is None else signature(full)


def _arguments(module: str, function: ast.FunctionDef, skip: int) -> Signature:
    """The signature of a function without its first `skip` arguments (such as `self`).

    `module`: the module of the function.
    """
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    no_default = [None] * (len(positional) - len(spec.defaults))
    arguments = list(zip(positional, [*no_default, *spec.defaults], strict=True))[skip:]
    arguments += list(zip(spec.kwonlyargs, spec.kw_defaults, strict=True))
    out = {}
    for arg, default in arguments:
        annotation = ast.unparse(arg.annotation) if arg.annotation else ""
        value = None if default is None else _literal(module, default)
        out[arg.arg] = Argument(arg.arg, annotation, default is None, value)
    return Signature(out, spec.kwarg is not None)


def _literal(module: str, node: ast.expr) -> Any:
    """The value of an expression of literals, `frozenset({...})` and `Other.name | {...}`.

    None for any other expression.
    """
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset":
        inner = _literal(module, node.args[0]) if node.args else ()
        return None if inner is None else frozenset(inner)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [_literal(module, node.left), _literal(module, node.right)]
        return None if None in sides else frozenset(sides[0]) | frozenset(sides[1])
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        full = _full_name(module, node.value.id)
        return class_value(full, node.attr) if full else None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _near(path: str, base: str | None = None) -> str:
    """Hint for an error about a dotted path that names nothing.

    It lists the classes of the path's module; if there is no such module, similar classes of this
    package; without these it states that the module is missing. For a name without a module it
    lists subclasses of `base`.
    """
    module, _, name = path.rpartition(".")
    tree = _tree(module) if module else None
    if tree is not None:
        classes = [n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
        functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        public = [name for name in functions if not name.startswith("_")]
        return f"{module} defines {', '.join(classes or public) or 'no class'}"
    similar = _similar_classes(name)
    if base is not None:
        similar = [p for p in similar if derives_from(resolve_alias(p), base)]
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    if module:
        return f"there is no module {module}"
    return (_choices(path, base) if base else "") or "write its dotted path"


def _choices(path: str, base: str) -> str:
    """Hint that lists the subclasses of `base` in its package; of many, the most similar one."""
    name, package = path.rpartition(".")[2], base.rsplit(".", 2)[0]
    in_package = [p for ps in _class_paths().values() for p in ps if p.startswith(f"{package}.")]
    # Classes in a module `base` are bases of others.
    valid = [p for p in in_package if ".base." not in p and derives_from(p, base)]
    valid = [p for p in valid if p != base]
    if len(valid) <= _MAX_CHOICES:
        return f"choose one of: {', '.join(sorted(valid))}" if valid else ""
    nearest = max(
        sorted(valid),
        key=lambda p: difflib.SequenceMatcher(None, name, p.rpartition(".")[2]).ratio(),
    )
    return f"for example {nearest}"


def _similar_classes(name: str) -> list[str]:
    """Aliases, and dotted paths of classes of this package, that are spelt like `name`."""
    paths = {alias: [alias] for alias in ALIASES} | _class_paths()
    near = difflib.get_close_matches(name, paths, n=1, cutoff=0.8)
    return [path for name in near for path in paths[name]]


def _class_paths() -> dict[str, list[str]]:
    """Name -> dotted paths of the public classes of this package."""
    package, paths = Path(__file__).parent, dict[str, list[str]]()
    for file in sorted(package.rglob("*.py")):
        module = ".".join((package.name, *file.relative_to(package).with_suffix("").parts))
        source = file.read_text("utf-8")
        for class_name in re.findall(r"^class ([A-Z]\w*)", source, re.MULTILINE):
            paths.setdefault(class_name, []).append(f"{module}.{class_name}")
    return paths
