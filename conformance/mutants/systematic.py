"""Systematic mutants: every operator, constant and condition of a module of gqa_numpy changed, one at a time.

Unlike the mutants that are written by hand these follow no idea of what goes wrong. Each is run in this process, as a
copy of the package, against the cases whose calls reach the changed function; it is caught by the first that differs.

    python -m conformance.mutants.systematic plain masks rope norm cache fast
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

import gqa_numpy

COPY = "gqa_numpy_mutant"
FOLDER = Path(gqa_numpy.__file__).parent


@dataclass(frozen=True)
class Change:
    """One changed node. function: the function or class that it is in, "" for the module. what: old -> new."""

    module: str
    line: int
    function: str
    what: str
    code: CodeType

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line} {self.function}: {self.what}"


# --- changes of one node ---------------------------------------------------------------------------------------------

OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Div,),
    ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "maximum": "minimum", "minimum": "maximum",
    "floor": "ceil", "ceil": "floor", "cos": "sin", "sin": "cos", "zeros": "ones", "ones": "zeros", "sum": "max",
}  # fmt: skip


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may be replaced by, with a description."""
    match node:
        case ast.BinOp() | ast.BoolOp():
            for other in OPERATORS.get(type(node.op), ()):
                yield type(other()).__name__, _with(node, op=other())
        case ast.Compare(ops=[op]):
            for other in OPERATORS.get(type(op), ()):
                yield type(other()).__name__, _with(node, ops=[other()])
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield "left out", node.operand
        case ast.Constant(value=bool(value)):
            yield str(not value), ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield str(value + 1), ast.Constant(value + 1)
        case ast.IfExp():
            yield "the other branch", _with(node, body=node.orelse, orelse=node.body)
        case ast.If() | ast.While():
            yield "condition negated", _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield "from one later", _with(node, lower=ast.BinOp(lower, ast.Add(), ast.Constant(1)))
            if upper is not None:
                yield "to one earlier", _with(node, upper=ast.BinOp(upper, ast.Sub(), ast.Constant(1)))
        case ast.Attribute(attr=name) if name in NAMES:
            yield NAMES[name], _with(node, attr=NAMES[name])
        case ast.Name(id=name) if name in NAMES:
            yield NAMES[name], _with(node, id=NAMES[name])
        case ast.Call(func=ast.Attribute(attr="where"), args=[condition, a, b]):
            yield "branches swapped", _with(node, args=[condition, b, a])
        case ast.AugAssign():
            yield "left out", ast.Pass()


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        if node is self.old:
            return ast.copy_location(self.new, node)
        return self.generic_visit(node)


def changes(module: str) -> Iterator[Change]:
    """Every change of a module: outside annotations, messages and error states."""
    source = _renamed((FOLDER / f"{module}.py").read_text())
    tree = ast.parse(source)
    skipped = {id(inner) for node in ast.walk(tree) for part in _unchanged_parts(node) for inner in ast.walk(part)}
    for function, node in list(_nodes(tree, "")):
        if id(node) in skipped:
            continue
        for what, new in list(_variants(node)):
            _Replace(node, new).visit(tree)
            code = compile(ast.fix_missing_locations(tree), f"{module}.py", "exec")
            _Replace(new, node).visit(tree)
            was = ast.unparse(node).split("\n")[0]
            yield Change(module, node.lineno, function, f"{was} -> {what}", code)  # type: ignore[attr-defined]


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inner = function
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not function:
            inner = child.name
        elif isinstance(child, ast.FunctionDef) and isinstance(node, ast.ClassDef):
            inner = f"{function}.{child.name}"
        yield inner, child
        yield from _nodes(child, inner)


def _unchanged_parts(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Raise() | ast.Import() | ast.ImportFrom():
            yield node
        case ast.FunctionDef():
            yield from node.decorator_list
            yield from filter(None, [node.returns, *(a.annotation for a in [*node.args.args, *node.args.kwonlyargs])])
        case ast.ClassDef():
            yield from node.decorator_list
        case ast.AnnAssign():
            yield node.annotation
        case ast.With():
            yield from (item.context_expr for item in node.items)
        case ast.Expr(value=ast.Constant()):
            yield node


def _renamed(source: str) -> str:
    return source.replace("gqa_numpy", COPY)


# --- a changed copy of the package -----------------------------------------------------------------------------------


def _modules() -> dict[str, CodeType]:
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    return {n: compile(_renamed((FOLDER / f"{n}.py").read_text()), f"{n}.py", "exec") for n in names}


class Finder:
    """Finds the modules of the copy, in place of files."""

    def __init__(self) -> None:
        self.codes = _modules()
        self.changed: Change | None = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        from importlib.machinery import ModuleSpec

        if name != COPY and not name.startswith(f"{COPY}."):
            return None
        return ModuleSpec(name, self, is_package=name == COPY)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        short = module.__name__.partition(".")[2] or "__init__"
        changed = self.changed is not None and self.changed.module == short
        exec(self.changed.code if changed else self.codes[short], vars(module))  # type: ignore[union-attr]


FINDER = Finder()


def package(change: Change | None = None) -> ModuleType:
    """The copy of gqa_numpy with one change, freshly imported."""
    import importlib

    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
    for name in [name for name in sys.modules if name == COPY or name.startswith(f"{COPY}.")]:
        del sys.modules[name]
    FINDER.changed = change
    return importlib.import_module(COPY)


# --- the cases --------------------------------------------------------------------------------------------------------


@dataclass
class Probe:
    """One call of a case. run: with a package, its arrays. expected: those of the oracle, and what each may be off."""

    name: str
    run: Callable[[Any], list[np.ndarray]]
    dtype: str
    expected: list[np.ndarray]
    allowed: list[float]
    reached: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Result:
    """caught_by: the first case that differs, or how the call failed; empty for a survivor."""

    change: Change
    caught_by: str


def run_change(change: Change, probes: list[Probe]) -> Result:
    """One change against the probes that reach its function."""
    from conformance.cases.compare import compare

    try:
        changed = package(change)
    except Exception as error:
        return Result(change, f"import: {type(error).__name__}")
    for probe in probes:
        if change.function and (change.module, change.function) not in probe.reached:
            continue
        try:
            with np.errstate(all="ignore"):
                got = probe.run(changed)
        except Exception as error:
            return Result(change, f"{probe.name}: {type(error).__name__}")
        pairs = zip(got, probe.expected, probe.allowed, strict=False)
        exact = not probe.name.endswith("gradients")
        if len(got) != len(probe.expected) or any(
            compare(g, e, probe.dtype, a, exact_zeros=exact).reason for g, e, a in pairs
        ):
            return Result(change, probe.name)
    return Result(change, "")


def probes(modules: tuple[str, ...]) -> list[Probe]:
    """The calls of the case table on the unchanged copy: short ones first, each with what it reaches."""
    right = package()
    found = []
    for name, dtype, run, allowed in _calls():
        reached: set[tuple[str, str]] = set()
        sys.setprofile(_recorder(reached, modules))
        try:
            expected = run(right)
        finally:
            sys.setprofile(None)
        found.append(Probe(name, run, dtype, expected, [allowed] * len(expected), frozenset(reached)))
    return found


def _recorder(reached: set[tuple[str, str]], modules: tuple[str, ...]) -> Callable[..., None]:
    files = {f"{module}.py": module for module in modules}

    def record(frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename in files:
            reached.add((files[code.co_filename], code.co_qualname.partition(".<locals>")[0]))

    return record


Calls = Iterator[tuple[str, str, Callable[[Any], list[np.ndarray]], float]]


def _calls() -> Calls:
    """(name, dtype, run, allowed). In 16 bit a result must be the unchanged copy's but for one rounding."""
    from conformance.cases.compare import EPSILON
    from conformance.cases.table import ALL_FEATURES, kernel_cases, layer_cases

    for case in sorted(kernel_cases(), key=lambda case: case.pairs):
        if case.pairs > 500_000:
            continue
        yield from _kernel_calls(case, "float64", 1e-12)
        if case.grouping == ALL_FEATURES:
            yield from _kernel_calls(case, "float32", 8 * EPSILON["float32"])
            yield from _kernel_calls(case, "bfloat16", EPSILON["bfloat16"])
    for case in layer_cases():
        if case.pairs < 100_000 and (case.grouping == ALL_FEATURES or case.feature.sizes):
            yield from _layer_calls(case, "float64", 1e-12)
            yield from _layer_calls(case, "float32", 64 * EPSILON["float32"])
    yield from _cache_calls()
    empty = [np.ones(shape) for shape in ((2, 4, 3, 8), (2, 2, 0, 8), (2, 2, 0, 5))]
    yield "no keys", "float64", lambda package: list(package.attention_stages(*empty).values()), 0.0
    yield (
        "no keys, without weights",
        "float64",
        lambda p: [p.grouped_query_attention(*empty, need_weights=False)[0]],
        0.0,
    )


def _kernel_calls(case: Any, dtype: str, allowed: float) -> Calls:
    from conformance.cases import inputs

    call = inputs.kernel_call(case, dtype)

    def whole(package: Any) -> list[np.ndarray]:
        return list(package.grouped_query_attention(*call.arguments, **call.keywords))

    def fast(package: Any) -> list[np.ndarray]:
        return [package.grouped_query_attention(*call.arguments, **call.keywords, need_weights=False)[0]]

    def stages(package: Any) -> list[np.ndarray]:
        found = package.attention_stages(*call.arguments, **call.keywords)
        return [found[name] for name in ("masked", "weights", "context", "logsumexp")]

    yield f"{case.name}, {dtype}", dtype, whole, allowed
    yield f"{case.name}, {dtype}, without weights", dtype, fast, allowed
    if dtype == "float64" and not case.feature.poison:
        yield f"{case.name}, {dtype}, stages", dtype, stages, allowed


def _layer_calls(case: Any, dtype: str, allowed: float) -> Calls:
    from conformance.cases import inputs

    call, weights = inputs.layer_call(case, dtype), inputs.weights(case, dtype)

    def layer(package: Any) -> Any:
        made = package.GroupedQueryAttention.from_config(case.config, dtype=inputs.DTYPES[dtype]).eval()
        return made.load_weights(weights)

    def gradients(package: Any) -> list[np.ndarray]:
        output, vjp = layer(package).vjp(*call.arguments, **call.keywords)
        return [x for _, x in sorted(vjp(np.ones_like(output)).items())]

    yield f"{case.name}, {dtype}", dtype, lambda p: list(layer(p)(*call.arguments, **call.keywords)), allowed
    if dtype == "float64" and not case.feature.poison:
        yield f"{case.name}, {dtype}, gradients", dtype, gradients, 1e-11


def _cache_calls() -> Calls:
    from conformance.cases import caches

    for case in caches.CASES:

        def run(package: Any, case: Any = case) -> list[np.ndarray]:
            layer = package.GroupedQueryAttention.from_config(case.config).eval().load_weights(caches.weights(case))
            cache = layer.init_cache(case.batch, case.max_length, rolling=case.rolling)

            def extend(x: np.ndarray, counts: list[int]) -> np.ndarray:
                nonlocal cache
                output, cache = layer.extend(x, cache, lengths=np.array(counts))
                return output

            return [caches.chunks(case, extend)]

        yield f"caches / {case.name}, float64", "float64", run, 1e-12


def main(modules: tuple[str, ...]) -> None:
    """Print each survivor, and the score of each module."""
    found = probes(modules)
    unchanged = Change("", 0, "", "unchanged", compile("", "", "exec"))
    assert not run_change(unchanged, found).caught_by
    for module in modules:
        results = [run_change(change, found) for change in changes(module)]
        everywhere = set().union(*(probe.reached for probe in found))
        reached = [r for r in results if not r.change.function or (module, r.change.function) in everywhere]
        for result in reached:
            if not result.caught_by:
                print(f"survived  {result.change.name}", flush=True)
        caught = sum(bool(result.caught_by) for result in reached)
        print(
            f"{module}: {caught} of {len(reached)} caught; {len(results) - len(reached)} are in functions that no case"
            " reaches", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ("plain", "masks", "rope", "norm", "cache", "fast"))
