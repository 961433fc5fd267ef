"""No line of ours may execute what it reads. Ruff sees names; this looks at the calls and their arguments."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from inscan import callbacks, models, profiles, service

PACKAGES = (service, callbacks, models, profiles)
FILES = sorted(
    path for package in PACKAGES for path in Path(next(iter(package.__path__))).rglob("*.py")
)

NEVER = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "msgpack_numpy",
    "numpy_pickle", "jsonpickle", "xmlrpc", "telnetlib", "tarfile", "imp", "code", "codeop", "pty",
}  # fmt: skip
"""Modules that execute, or unpack to wherever, what they read."""

HINT = re.compile(
    r"pickle|\bload\w*\(|\beval\(|\bexec\(|__import__|breakpoint|os\.(?:system|popen|spawn)|\bshell=|pyobj|\.extract|unpack_archive|yaml|get_command_output|torch\.jit"
    rf"|torch\.hub|torch\.package|\b(?:{'|'.join(NEVER)})\b"
)
"""Whether a file is worth parsing."""

MAY_EXEC = {"demo_beamline.py": 1, "rehearsal.py": 1}
"""Files of ours that run startup files and plans of the person who names them; how often."""


def called(node: ast.Call) -> str:
    """`a.b.c` of `a.b.c(...)`, empty for calls of something else."""
    parts: list[str] = []
    at: ast.expr = node.func
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    return ".".join(reversed([*parts, at.id])) if isinstance(at, ast.Name) else ""


def constant(node: ast.Call, name: str) -> object:
    """A keyword's value where it is written out, else its absence."""
    for keyword in node.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else "computed"
    return None


def faults(tree: ast.AST) -> Iterator[str]:
    """What in a module could execute what it reads."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            for name in names:
                if name.split(".")[0] in NEVER:
                    yield f"{line}: imports {name}"
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        last = name.rpartition(".")[2]
        match name.split("."):
            case ["torch", *_, "load"] if constant(node, "weights_only") is not True:
                yield f"{line}: torch.load without weights_only=True"
            case ["torch", "jit" | "hub" | "package", *_]:
                yield f"{line}: {name} runs what it reads"
            case ["np" | "numpy", "load"] if constant(node, "allow_pickle") is not False:
                yield f"{line}: np.load without allow_pickle=False"
            case ["yaml", what] if what not in ("safe_load", "safe_dump", "parse"):
                yield f"{line}: yaml.{what}"
            case ["eval" | "exec" | "__import__" | "breakpoint"]:
                yield f"{line}: {name}"
            case ["os", what] if what in ("system", "popen") or what.startswith("spawn"):
                yield f"{line}: os.{what}"
            case ["zmq", *_] | [*_, "recv_pyobj" | "send_pyobj"] if last in (
                "recv_pyobj",
                "send_pyobj",
            ):
                yield f"{line}: {last} pickles"
        if last in ("recv_pyobj", "send_pyobj", "to_pickle", "read_pickle", "get_command_output"):
            yield f"{line}: {last}"
        if constant(node, "shell") not in (None, False):
            yield f"{line}: a shell"
        if (
            last in ("extractall", "extract", "unpack_archive")
            or constant(node, "allow_pickle") is True
        ):
            yield f"{line}: {last} of an archive, or of pickled objects"


def test_nothing_executes_what_it_reads():
    wrong = {}
    assert len(FILES) > 200
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        found = list(faults(ast.parse(text))) if HINT.search(text) else []
        allowed = MAY_EXEC.get(path.name, 0) if path.parent.name == "service" else 0
        if len(found) != allowed or not all(fault.endswith(": exec") for fault in found):
            wrong[f"{path.parent.name}/{path.name}"] = found
    assert wrong == {}


def test_what_it_is_there_to_find_is_found():
    lines = [
        "import pickle", "from pickle import loads", "import joblib.numpy_pickle", "import tarfile",
        "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=w)", "torch.jit.load(p)",
        "torch.hub.load(p)", "np.load(p)", "np.load(p, allow_pickle=True)", "numpy.load(p, mmap_mode='r')",
        "yaml.load(t)", "yaml.load(t, Loader=L)", "yaml.unsafe_load(t)", "yaml.full_load_all(t)", "eval(t)", "exec(t)",
        "os.system(t)", "os.popen(t)", "subprocess.run(t, shell=True)", "Popen(t, shell=s)", "socket.recv_pyobj()",
        "shutil.unpack_archive(p)", "archive.extractall(p)", "np.savez(p, allow_pickle=True)", "df.to_pickle(p)",
    ]  # fmt: skip
    missed = [line for line in lines if not HINT.search(line) or not list(faults(ast.parse(line)))]
    assert missed == []


def test_what_is_harmless_is_not():
    lines = [
        "torch.load(p, weights_only=True)", "np.load(p, allow_pickle=False)", "yaml.safe_load(t)", "json.loads(t)",
        "subprocess.run(['a'])", "subprocess.run(['a'], shell=False)", "model.eval()", "np.save(p, a)",
    ]  # fmt: skip
    assert [line for line in lines if list(faults(ast.parse(line)))] == []
