"""One-line breakages of a source file, by its syntax tree: where they are, and what each makes of its line.

Operators: a comparison turned (``<`` to ``>``, ``==`` to ``!=``, ``in`` to ``not in``), a number or a truth value
changed, ``+`` to ``-`` and ``*`` to ``/``, ``and`` to ``or``, a condition negated, a call dropped that stands alone on
its line, and a default changed. Words in quotes, annotations and errors' texts stay as they are.
"""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
Change = tuple[str, ast.AST, str]
"""Operator, node that is replaced, its new text."""


@dataclass(frozen=True)
class Site:
    """One breakage: ``line`` counts from 1, ``before`` and ``after`` are the whole line."""

    room: str
    path: str
    line: int
    operator: str
    before: str
    after: str

    @property
    def key(self) -> str:
        """What it is known by in a file of results; it says what changed, so that an edited source asks anew."""
        return f"{self.path}:{self.line} {self.operator}: {self.before.strip()} -> {self.after.strip()}"

    def broken(self, source: str) -> str:
        """Return the source with this line broken."""
        lines = source.splitlines(keepends=True)
        assert lines[self.line - 1].rstrip("\n") == self.before, f"{self.path} has changed"
        lines[self.line - 1] = self.after + "\n"
        return "".join(lines)


def sites_of(source: str, path: str = "", room: str = "") -> list[Site]:
    """Return every breakage of a source, in its order; each compiles.

    Example:
        >>> [site.after for site in sites_of("def f(a, b=1): return a < b")]
        ['def f(a, b=1): return a > b', 'def f(a, b=2): return a < b']
    """
    lines, found = source.splitlines(), {}
    for operator, node, new in _changes(ast.parse(source)):
        if node.lineno != node.end_lineno:
            continue
        before = lines[node.lineno - 1]
        raw = before.encode()  # columns count bytes
        after = (raw[: node.col_offset] + new.encode() + raw[node.end_col_offset :]).decode()
        site = Site(room, path, node.lineno, operator, before, after)
        try:
            compile(site.broken(source), path, "exec", dont_inherit=True)
        except SyntaxError:
            continue
        found.setdefault((node.lineno, after), site)
    return sorted(found.values(), key=lambda site: (site.line, site.operator, site.after))


def drawn(rooms: dict[str, Sequence[Path]], root: Path, count: int, seed: int) -> list[Site]:
    """Draw so many breakages: rooms in turn, and within a room its operators in turn, so that no kind drowns another.

    The first of a greater count are those of a smaller one.
    """
    order = random.Random(seed)
    piles: dict[str, list[list[Site]]] = {}
    for room, paths in rooms.items():
        by_operator: dict[str, list[Site]] = {}
        for path in paths:
            for site in sites_of((root / path).read_text(encoding="utf-8"), str(path), room):
                by_operator.setdefault(site.operator, []).append(site)
        piles[room] = [by_operator[name] for name in sorted(by_operator)]
        for pile in piles[room]:
            order.shuffle(pile)
        order.shuffle(piles[room])
    chosen: list[Site] = []
    while len(chosen) < count and any(piles.values()):
        for room in piles:
            piles[room] = [pile for pile in piles[room] if pile]
            if piles[room]:
                pile = piles[room].pop(0)
                chosen.append(pile.pop())
                piles[room].append(pile)
    return chosen[:count]


def _changes(tree: ast.AST) -> Iterator[Change]:
    spared = _spared(tree)
    for node in ast.walk(tree):
        if id(node) not in spared:
            yield from _of_node(node)


def _spared(tree: ast.AST) -> set[int]:
    """Return what is no behaviour: annotations, decorators, what is raised, what the type checker alone reads."""
    tops: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg):
            tops.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            tops += [node.returns, *node.decorator_list]
            if isinstance(last := node.body[-1], ast.Raise) and "NotImplementedError" in ast.unparse(last):
                tops.append(node)  # others fill it in, with defaults of their own
        elif isinstance(node, ast.ClassDef):
            tops += node.decorator_list
        elif isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            tops.append(node)
    return {id(inner) for top in tops if top is not None for inner in ast.walk(top)}


def _of_node(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            operators = [*node.ops[:at], TURNED[type(operator)](), *node.ops[at + 1 :]]
            yield "comparison", node, ast.unparse(ast.Compare(node.left, operators, node.comparators))
    elif isinstance(node, ast.Constant):
        if (new := _other(node.value)) is not None:
            yield "constant", node, new
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        if not any(map(_is_text, (node.left, node.right))):
            yield "arithmetic", node, ast.unparse(ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right))
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and, or", node, f"({ast.unparse(ast.BoolOp(other, node.values))})"
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "condition", node.test, _negated(node.test)
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield "condition", test, _negated(test)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call", node, "pass"
    elif isinstance(node, ast.arguments):
        for default in (*node.defaults, *node.kw_defaults):
            if isinstance(default, ast.Constant) and (new := _other(default.value)) is not None:
                yield "default", default, new


def _is_text(side: ast.expr) -> bool:
    """Return whether an operand is a text, which no arithmetic but ``+`` takes, as any run would show."""
    if isinstance(side, ast.Call) and isinstance(side.func, ast.Attribute):
        side = side.func.value
    return isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))


def _other(value: object) -> str | None:
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return str(2 * value if value else 1.0)
    return None


def _negated(test: ast.expr) -> str:
    return f"(not ({ast.unparse(test)}))"
