"""One-line faults of a Python source: all that can be planted, and a sample of them.

A fault replaces the text of one node of the syntax tree. It is identified by its file, its
function, the text before and after, and a count among equal faults, not by its line: an edit
elsewhere in the file changes neither its name nor its position in the sample.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

SPLITS = {"train": "test", "val": "train", "test": "train", "trainval": "test"}
OTHER_COMPARISON = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OTHER_OPERATION = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# Calls whose arguments are text for people, or checks of the type checker.
TEXT_CALLS = {
    "KdepError",
    "print",
    "warn",
    "progress",
    "say",
    "print_line",
    "cast",
    "debug",
    "info",
    "warning",
}
TEXT_CALLS |= {"Archive", "unknown_name", "TypeVar", "Path.home", "isEnabledFor"}
# Keywords that change no value: a check that lengths agree, text for people, speed.
IDLE_KEYWORDS = {
    "strict",
    "encoding",
    "help",
    "non_blocking",
    "pin_memory",
    "note",
    "desc",
    "description",
}
IDLE_KEYWORDS |= {"page", "licence", "title", "timeout"}
# Calls that raise an error if an argument is missing: every test that runs the line would notice.
CRASHING_CALLS = {"isinstance", "hasattr", "issubclass", "super"}
NAME = re.compile(r"[\w./:*-]+")  # texts that are names or paths, not sentences
OPERATORS = (ast.operator, ast.cmpop, ast.unaryop, ast.boolop, ast.expr_context)


@dataclass(frozen=True)
class Fault:
    """`before` at the byte offsets `start` to `end` of the file becomes `after`.

    `content` is a hash of the function (or of the module's statement) that contains the fault,
    without the texts of errors. A result stays valid as long as this hash is the same.
    """

    file: str
    function: str
    kind: str
    before: str
    after: str
    start: int
    end: int
    line: int
    content: str = ""
    count: int = 0

    @property
    def key(self) -> str:
        """The name of the fault: unique, and unchanged by edits elsewhere in the file."""
        number = f" #{self.count}" if self.count else ""
        return f"{self.file}::{self.function or '<module>'}: {self.before} -> {self.after}{number}"

    def plant(self, source: str) -> str:
        """The source with the fault in it."""
        raw = source.encode()
        return (raw[: self.start] + self.after.encode() + raw[self.end :]).decode()


class Finder:
    """Finds the faults of a source: each node of its syntax tree can be replaced in some ways."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tree = ast.parse(source)
        self.contents: dict[ast.AST, str] = {}
        self.parents = {c: p for p in ast.walk(self.tree) for c in ast.iter_child_nodes(p)}
        self.silent: set[ast.AST] = set()
        for node in ast.walk(self.tree):
            for child in self.without_effect(node):
                self.silent |= set(ast.walk(child))

    def without_effect(self, node: ast.AST) -> Iterator[ast.AST]:
        """Parts of `node` that cannot change a number: texts, hints, imports, raised errors."""
        if self.is_without_effect(node):
            yield node
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [a for a in ast.walk(node.args) if isinstance(a, ast.arg)]
            yield from (a.annotation for a in arguments if a.annotation)
            yield from ([node.returns] if node.returns else [])
            yield from node.decorator_list
        elif isinstance(node, ast.ClassDef):
            yield from node.decorator_list
            yield from node.bases

    def is_without_effect(self, node: ast.AST) -> bool:
        """Whether the node is text, a hint or an import, or an argument that changes no value."""
        match node:
            case ast.Expr(value=ast.Constant()):
                return True
            case ast.JoinedStr() | ast.Raise() | ast.Import() | ast.ImportFrom() | ast.Assert():
                return True
            case ast.Call():
                return self.called_name(node) in TEXT_CALLS
            case ast.FunctionDef():  # `tiny` makes the data of a rehearsal, which is not scored
                return node.name in ("__repr__", "__str__", "tiny")
            case ast.Assign(targets=[ast.Name(id="__all__" | "__slots__")]):
                return True
            case ast.If():
                return "TYPE_CHECKING" in ast.unparse(node.test)
            case ast.keyword():
                return node.arg in IDLE_KEYWORDS
            case ast.Subscript():
                return self.is_hint(node)
        return False

    def is_hint(self, node: ast.Subscript) -> bool:
        """Whether the subscript is a type hint."""
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        return name in {"dict", "list", "tuple", "set", "type", "Callable", "Literal", "Mapping"}

    @staticmethod
    def called_name(node: ast.Call) -> str:
        """The name of the called function or method."""
        function = node.func
        return (
            function.attr
            if isinstance(function, ast.Attribute)
            else function.id
            if isinstance(function, ast.Name)
            else ""
        )

    def function(self, node: ast.AST) -> str:
        """The interpreter's qualified name of the function that contains `node`."""
        parts: list[str] = []
        inside: ast.AST = node
        while inside in self.parents:
            inside = self.parents[inside]
            if isinstance(inside, ast.FunctionDef | ast.AsyncFunctionDef):
                parts += ["<locals>", inside.name] if parts else [inside.name]
            elif isinstance(inside, ast.ClassDef) and parts:
                parts.append(inside.name)
        return ".".join(reversed(parts))

    def content(self, node: Any) -> str:
        """Hash of the function, or the statement of the module, that contains `node`.

        Comments, docstrings and the texts of errors are left out, as they change no number.
        """
        inside = node
        while not isinstance(self.parents.get(inside), ast.Module):
            if isinstance(inside, ast.FunctionDef) and inside is not node:
                break
            inside = self.parents[inside]
        if inside not in self.contents:
            shape = self.shape(inside)
            self.contents[inside] = hashlib.sha256(shape.encode()).hexdigest()[:12]
        return self.contents[inside]

    def shape(self, value: Any) -> str:
        """The tree as text, without the texts of errors and docstrings."""
        match value:
            case ast.Raise():
                return "raise"
            case ast.Expr(value=ast.Constant()):
                return ""
            case ast.Call() if self.called_name(value) in TEXT_CALLS:
                return "text"
            case ast.AST():
                fields = ",".join(self.shape(v) for _, v in ast.iter_fields(value))
                return f"{type(value).__name__}({fields})"
            case list():
                return f"[{','.join(map(self.shape, value))}]"
        return repr(value)

    def find(self) -> Iterator[tuple[ast.AST, str, str]]:
        """(node, kind, the text that replaces it) of every fault."""
        for node in ast.walk(self.tree):
            if node in self.silent or isinstance(node, OPERATORS):
                continue
            visit = getattr(self, f"faults_of_{type(node).__name__.lower()}", None)
            if visit is None or not hasattr(node, "end_lineno"):
                continue
            for kind, new in visit(node):
                yield node, kind, new if isinstance(new, str) else f"{source_of(node, new)}"

    def faults_of_constant(self, node: ast.Constant) -> Iterator[tuple[str, str]]:
        """The other bool, an integer 1 higher or lower, twice a float, another split or name."""
        value = node.value
        if isinstance(value, bool):
            yield "constant", repr(not value)
        elif isinstance(value, int):
            parent = self.parents.get(node)
            index = isinstance(parent, ast.Subscript | ast.Slice)
            yield "index" if index else "constant", repr(value + 1)
            if value > 0:
                yield "index" if index else "constant", repr(value - 1)
        elif isinstance(value, float):
            yield "constant", repr(value * 2 if value else 1.0)
        elif isinstance(value, str) and value in SPLITS:
            yield "split", repr(SPLITS[value])
        elif isinstance(value, str) and NAME.fullmatch(value):
            yield "text", repr(f"{value}_")

    def faults_of_compare(self, node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
        """Another comparison, such as <= for <."""
        for i, op in enumerate(node.ops):
            ops = list(node.ops)
            ops[i] = OTHER_COMPARISON[type(op)]()
            yield "comparison", ast.Compare(node.left, ops, node.comparators)

    def faults_of_binop(self, node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
        """Another operator, such as - for +."""
        parent = self.parents[node]
        if isinstance(parent, ast.Call) and self.called_name(parent) in CRASHING_CALLS:
            return
        if type(node.op) in OTHER_OPERATION:
            yield "arithmetic", ast.BinOp(node.left, OTHER_OPERATION[type(node.op)](), node.right)

    def faults_of_augassign(self, node: ast.AugAssign) -> Iterator[tuple[str, ast.AST]]:
        """Another operator, and an assignment in place of the update."""
        if type(node.op) in OTHER_OPERATION:
            yield (
                "arithmetic",
                ast.AugAssign(node.target, OTHER_OPERATION[type(node.op)](), node.value),
            )
        yield "arithmetic", ast.Assign([node.target], node.value, lineno=0)

    def faults_of_unaryop(self, node: ast.UnaryOp) -> Iterator[tuple[str, ast.AST]]:
        """The operand without its minus or `not`."""
        if isinstance(node.op, ast.USub | ast.Not) and not isinstance(node.operand, ast.Constant):
            yield "arithmetic" if isinstance(node.op, ast.USub) else "branch", node.operand

    def faults_of_boolop(self, node: ast.BoolOp) -> Iterator[tuple[str, ast.AST]]:
        """`or` for `and` (or the reverse), and each operand left out."""
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "branch", ast.BoolOp(other, node.values)
        for i in range(len(node.values)):
            left = [v for j, v in enumerate(node.values) if j != i]
            yield "branch", left[0] if len(left) == 1 else ast.BoolOp(node.op, left)

    def faults_of_ifexp(self, node: ast.IfExp) -> Iterator[tuple[str, ast.AST]]:
        """The two values exchanged, and each value without a condition."""
        yield "branch", ast.IfExp(node.test, node.orelse, node.body)
        yield "branch", node.body
        yield "branch", node.orelse

    def faults_of_return(self, node: ast.Return) -> Iterator[tuple[str, str]]:
        """`return None`."""
        if node.value is not None and not (
            isinstance(node.value, ast.Constant) and node.value.value is None
        ):
            yield "return", "return None"

    def faults_of_subscript(self, node: ast.Subscript) -> Iterator[tuple[str, ast.AST]]:
        """The sequence without its slice."""
        if isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load):
            yield "slice", node.value

    def faults_of_continue(self, node: ast.Continue) -> Iterator[tuple[str, str]]:
        """`break`."""
        yield "branch", "break"

    def faults_of_break(self, node: ast.Break) -> Iterator[tuple[str, str]]:
        """`continue`."""
        yield "branch", "continue"

    def faults_of_dict(self, node: ast.Dict) -> Iterator[tuple[str, ast.AST]]:
        """Each entry left out."""
        for i in range(len(node.keys)):
            keys = [k for j, k in enumerate(node.keys) if j != i]
            yield "entry dropped", ast.Dict(keys, [v for j, v in enumerate(node.values) if j != i])

    def faults_of_expr(self, node: ast.Expr) -> Iterator[tuple[str, str]]:
        """`pass` in place of a call whose result is not used."""
        if isinstance(node.value, ast.Call):
            yield "call removed", "pass"

    def faults_of_assign(self, node: ast.Assign) -> Iterator[tuple[str, str]]:
        """`pass` in place of an assignment to an attribute or an entry."""
        target = node.targets[0]
        if isinstance(target, ast.Attribute | ast.Subscript):
            yield "assignment removed", "pass"

    def faults_of_listcomp(self, node: Any) -> Iterator[tuple[str, ast.AST]]:
        """A comprehension without the conditions of one of its loops."""
        generators = node.generators
        for i, g in enumerate(generators):
            if g.ifs:
                new = list(generators)
                new[i] = ast.comprehension(g.target, g.iter, [], g.is_async)
                kept = {
                    field: getattr(node, field) for field in node._fields if field != "generators"
                }
                yield "branch", type(node)(**kept, generators=new)

    faults_of_setcomp = faults_of_dictcomp = faults_of_generatorexp = faults_of_listcomp

    def faults_of_call(self, node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
        """Two arguments exchanged, an argument left out, the seed 0, or no call.

        Without the call, its first argument is left, or the object whose method it calls.
        """
        if self.called_name(node) in CRASHING_CALLS:
            return
        plain = [a for a in node.args if not isinstance(a, ast.Starred)]
        if len(plain) == len(node.args) and len(plain) >= 2:
            if ast.dump(plain[0]) != ast.dump(plain[1]):
                swapped = [plain[1], plain[0], *plain[2:]]
                yield "arguments swapped", ast.Call(node.func, swapped, node.keywords)
            yield "argument dropped", ast.Call(node.func, plain[:-1], node.keywords)
        for i, keyword in enumerate(node.keywords):
            if keyword.arg in IDLE_KEYWORDS or keyword.arg is None:
                continue
            rest = [k for j, k in enumerate(node.keywords) if j != i]
            yield "keyword dropped", ast.Call(node.func, node.args, rest)
            if keyword.arg in ("seed", "generator") and not isinstance(keyword.value, ast.Constant):
                other = [*rest, ast.keyword(keyword.arg, ast.Constant(0))]
                yield "seed", ast.Call(node.func, node.args, other)
        statement = isinstance(self.parents.get(node), ast.Expr)
        if not statement and plain and not isinstance(node.func, ast.Attribute):
            yield "call removed", plain[0]
        elif not statement and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            root = owner
            while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
                root = root.func if isinstance(root, ast.Call) else root.value
            module = isinstance(owner, ast.Name) and owner.id in MODULES
            if module and plain:
                yield "call removed", plain[0]
            elif not module:
                yield "call removed", owner


MODULES = {"torch", "np", "F", "math", "json", "os", "nn", "itertools", "functools", "random"}
MODULES |= {"stats", "statistics", "hashlib", "shutil", "re", "cv2", "dataclasses", "copy"}


def source_of(old: ast.AST, new: ast.AST) -> str:
    """Source of `new`, in brackets if it may be a part of a larger expression."""
    text = ast.unparse(ast.fix_missing_locations(new))
    compound = ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp | ast.IfExp | ast.Lambda
    if isinstance(new, compound) and isinstance(old, ast.expr):
        return f"({text})"
    return text


def inverted_branches(finder: Finder) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, kind, new text) of the inverted condition of every `if` and `while`.

    Without conditions that begin with `not`, which `faults_of_unaryop` inverts.
    """
    for node in ast.walk(finder.tree):
        if isinstance(node, ast.If | ast.While) and node not in finder.silent:
            if isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not):
                continue
            yield node.test, "branch", f"(not ({ast.unparse(node.test)}))"


def faults_of(file: str, source: str) -> list[Fault]:
    """All faults that can be planted in a source, in the order of the text."""
    finder = Finder(source)
    whole = source.encode()
    raw = whole.splitlines(keepends=True)
    starts = [0]
    for line in raw:
        starts.append(starts[-1] + len(line))
    found: list[Fault] = []
    seen: Counter[str] = Counter()
    edits: set[tuple[int, int, str]] = set()
    nodes: list[tuple[Any, str, str]] = [*finder.find(), *inverted_branches(finder)]
    nodes.sort(key=lambda f: (f[0].lineno, f[0].col_offset, f[0].end_lineno, f[0].end_col_offset))
    for node, kind, new in nodes:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        before = whole[start:end].decode()
        one_line = " ".join(before.split())
        if (start, end, new) in edits or one_line == new:
            continue
        edits.add((start, end, new))
        fault = Fault(file, finder.function(node), kind, one_line, new, start, end, node.lineno)
        number = seen[fault.key]
        seen[fault.key] += 1
        found.append(replace(fault, count=number, content=finder.content(node)))
    return found


def compiles(source: str) -> bool:
    """Whether the source is valid Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            compile(source, "fault", "exec")
        except (SyntaxError, ValueError):
            return False
    return True


def sample(sources: dict[str, str], count: int, seed: int) -> list[Fault]:
    """`count` faults of the files in `sources` ({path: source}), drawn by the hash of their names.

    An edit of a file therefore changes only few faults of the sample. Every second fault is of the
    kind that has the fewest faults so far: rare kinds occur, too. A line has at most one fault.
    """
    faults = [f for file, source in sources.items() for f in faults_of(file, source)]
    order = sorted(faults, key=lambda f: hashlib.sha256(f"{seed} {f.key}".encode()).digest())
    taken: list[Fault] = []
    lines: set[tuple[str, int]] = set()
    kinds: Counter[str] = Counter()
    while order and len(taken) < count:
        chosen = order[0]
        if len(taken) % 2:
            fewest = min({f.kind for f in order}, key=lambda k: (kinds[k], k))
            chosen = next(f for f in order if f.kind == fewest)
        order.remove(chosen)
        if (chosen.file, chosen.line) in lines or not compiles(chosen.plant(sources[chosen.file])):
            continue
        lines.add((chosen.file, chosen.line))
        kinds[chosen.kind] += 1
        taken.append(chosen)
    return taken
