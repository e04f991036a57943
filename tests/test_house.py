"""The house's own rules as tests: imports go down, formats, types, nothing blocks the loop, nothing is swallowed."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "proxy_vpn"
TOOL_S = 200

# From the ground up. A module imports lower floors, and its own floor without a cycle. The package itself, which
# shows the public API, is the roof: it may import everything, and only its version is imported from it.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "keys", "addresses", "ranges", "config"}),
    frozenset({"wire"}),
    frozenset({"dht"}),
    frozenset({"net"}),
    frozenset({"mesh"}),
    frozenset({"doors"}),
    frozenset({"daemon"}),
    frozenset({"cli"}),
    frozenset({"__init__", "__main__"}),
)
ROOF = len(FLOORS) - 1
PURE_FLOORS = (1, 2)
IMPURE = frozenset(
    {"asyncio", "socket", "time", "random", "secrets", "os", "threading", "ssl", "selectors", "subprocess"}
)
SLOW_FOR_CLI = frozenset({"aiohttp", "rich", "asyncio", "scapy", "qh3", "aioquic", "kademlia", "zeroconf"})
BLOCKING = frozenset({"time.sleep", "os.system", "os.wait", "os.waitpid", "select.select", "socket.create_connection"})
BLOCKING_IN_COROUTINES = BLOCKING | frozenset(
    {
        "input",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "subprocess.run",
        "subprocess.call",
        "subprocess.check_call",
        "subprocess.check_output",
    }
)

# What they do, they do in a process of its own before or without a loop; only their coroutines are looked at.
LOOPLESS = frozenset({"proxy_vpn.cli.requests", "proxy_vpn.daemon.demo", "proxy_vpn.doors.namespace_giver"})

MODULES = {
    ".".join(("proxy_vpn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def floor_of(module: str) -> int:
    """The floor a module lives on; a new one at the top of the package must be given its place in FLOORS."""
    room = [*module.split("."), "__init__"][1]
    floors = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert floors, f"{module} has no floor yet: add {room!r} to FLOORS"
    return floors[0]


def imports_of(module: str, types_too: bool = True) -> Iterator[tuple[int, str]]:
    """(line, full name) of each import, wherever it stands; names from inside the package resolved to modules.

    With `types_too` unset, without those that only type checkers follow.
    """
    is_package = MODULES[module].name == "__init__.py"
    for node in ast.walk(TREES[module]) if types_too else _executed(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if whole in MODULES else base


def inner_imports(module: str, types_too: bool = True) -> set[str]:
    """The package's modules that a module imports, itself and the roof's version aside."""
    names = {name for _, name in imports_of(module, types_too) if name.split(".")[0] == "proxy_vpn"}
    unknown = names - MODULES.keys()
    assert not unknown, f"{module} imports what does not exist: {unknown}"
    return names - {module, "proxy_vpn"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    floor = floor_of(module)
    upward = {name for name in inner_imports(module) if floor_of(name) > floor}
    assert not upward, f"{module} (floor {floor}) imports from above: {', '.join(sorted(upward))}"


@pytest.mark.parametrize("floor", range(ROOF))
def test_each_floor_is_free_of_cycles(floor: int) -> None:
    here = {module for module in MODULES if floor_of(module) == floor}
    try:
        TopologicalSorter({module: inner_imports(module, types_too=False) & here for module in here}).prepare()
    except CycleError as cycle:
        pytest.fail(f"imports go in a circle: {' -> '.join(cycle.args[1])}")


@pytest.mark.parametrize("module", [module for module in MODULES if floor_of(module) in PURE_FLOORS])
def test_bytes_and_decisions_are_pure(module: str) -> None:
    impure = {f"{name} (line {line})" for line, name in imports_of(module) if name.split(".")[0] in IMPURE}
    assert not impure, f"{module} gets time, entropy and bytes as arguments, so it needs no {', '.join(impure)}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_blocks_the_loop(module: str) -> None:
    anywhere = frozenset() if module in LOOPLESS else BLOCKING
    faults = [f"line {line}: {name}" for line, name in _blocking_calls(TREES[module], anywhere, False)]
    assert not faults, f"{module} blocks: {'; '.join(faults)}"


@pytest.mark.parametrize("module", MODULES)
def test_every_task_has_an_owner(module: str) -> None:
    statements = (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Expr | ast.Assign))
    orphans = [statement.lineno for statement in statements if _drops_a_task(statement)]
    assert not orphans, f"{module} starts tasks nobody holds, on lines {orphans}"


@pytest.mark.parametrize("module", MODULES)
def test_broad_excepts_give_their_reason(module: str) -> None:
    comments = _comment_lines(MODULES[module])
    silent = [
        node.lineno
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.ExceptHandler)
        and _is_broad(node.type)
        and not _only_cleans_up(node)
        and not {node.lineno - 1, node.lineno, node.body[0].lineno - 1} & comments
    ]
    assert not silent, f"{module} catches everything without a reason beside it, on lines {silent}"


@pytest.mark.parametrize(
    "tool", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)], ids=["ruff check", "ruff format", "mypy"]
)
@pytest.mark.timeout(TOOL_S + 20)
def test_tools_are_content(tool: tuple[str, ...]) -> None:
    if importlib.util.find_spec(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    where = () if tool[0] == "mypy" else (".",)
    done = subprocess.run(
        [sys.executable, "-m", *tool, *where], cwd=ROOT, capture_output=True, text=True, timeout=TOOL_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_control_commands_start_fast() -> None:
    """A control command answers within 200 ms, so the CLI must not load what only the running process needs."""
    program = "import json, sys, proxy_vpn.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=TOOL_S, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = SLOW_FOR_CLI & set(json.loads(done.stdout))
    assert not loaded, f"`import proxy_vpn.cli` loads {', '.join(sorted(loaded))}"


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk, but not into `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and _dotted(child.test).endswith("TYPE_CHECKING")):
            yield from _executed(child)


def _blocking_calls(node: ast.AST, anywhere: frozenset[str], in_coroutine: bool) -> Iterator[tuple[int, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            name = _dotted(child.func)
            if name in anywhere or (in_coroutine and name in BLOCKING_IN_COROUTINES):
                yield child.lineno, name
        # A plain function defined inside a coroutine is what gets handed to a thread.
        within = isinstance(child, ast.AsyncFunctionDef) or (
            in_coroutine and not isinstance(child, ast.FunctionDef | ast.Lambda)
        )
        yield from _blocking_calls(child, anywhere, within)


def _drops_a_task(statement: ast.Expr | ast.Assign) -> bool:
    """A statement that only starts a task, on asyncio or a loop: a TaskGroup would hold it, these do not."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if any(not isinstance(target, ast.Name) or target.id != "_" for target in targets):
        return False
    if not isinstance(statement.value, ast.Call):
        return False
    owner, _, verb = _dotted(statement.value.func).rpartition(".")
    holder = owner.rpartition(".")[2].lstrip("_")
    return verb in {"create_task", "ensure_future", "run_coroutine_threadsafe"} and (
        holder in {"", "asyncio"} or holder.endswith(("loop", "loop()"))
    )


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{_dotted(node.func)}()"
    return "?"


def _is_broad(caught: ast.expr | None) -> bool:
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(kind is None or _dotted(kind) in {"Exception", "BaseException"} for kind in kinds)


def _only_cleans_up(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _comment_lines(path: Path) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
