"""What a notebook's outputs depend on, found by reading code and running none.

Its own cells; the functions, classes and constants of ``helpers`` and ``notebooks/lessons`` that these reach by name,
and whatever those reach; the data files and programs that any of them names. Comments, docstrings, imports of the
course and the module in which something lies do not count, so a move of code changes nothing. What cannot be told
counts whole.
"""

import ast
import functools
import hashlib
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from helpers import settings

DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
DEFINITIONS = DOCUMENTED[1:]
IMPORTS = (ast.Import, ast.ImportFrom)
OURS = ("helpers", "notebooks")
AT_IMPORT = ""  # the "name" of a module's statements that bind none


class Place(NamedTuple):
    """A module of the course, a file or a folder, or what one of its names stands for."""

    file: Path
    name: str | None = None

    def member(self, name: str) -> "Place":
        """Return what a module's name stands for: a module inside it, or something of its own."""
        places = (Place(self.file / f"{name}.py"), Place(self.file / name))
        return next((place for place in places if place.file.exists()), Place(self.file, name))


def plain(source: str, *, module: bool = False) -> ast.Module:
    """Parse code and take its docstrings away; a cell's first string is shown, a module's is not (``module``)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (module or node is not tree) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _read(file: Path) -> ast.Module:
    source = file / "__init__.py" if file.is_dir() else file
    return plain(source.read_text(encoding="utf-8") if source.exists() else "", module=True)


class Module:
    """Code by the names that its statements bind, and what its imports bring of the course."""

    def __init__(self, file: Path, tree: ast.Module) -> None:
        """Read the code of a file."""
        self.file = file
        self.imported: dict[str, Place] = {}
        self.statements: dict[str, list[ast.stmt]] = {}
        for node in ast.walk(tree):
            before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names if isinstance(node, IMPORTS) else ():
                dotted = before + alias.name if before or alias.asname else alias.name.partition(".")[0]
                bound, (first, *rest) = alias.asname or dotted.removeprefix(before), dotted.split(".")
                if first in OURS:
                    self.imported[bound] = functools.reduce(Place.member, rest, Place(settings.ROOT / first))
                elif node in tree.body:  # another package's: this name alone, whatever else the line imports
                    line = ast.ImportFrom(before[:-1], [alias], 0) if before else ast.Import([alias])
                    self.statements.setdefault(bound, []).append(line)
        for statement in tree.body:
            names = {statement.name} if isinstance(statement, DEFINITIONS) else set()
            for node in () if names else ast.walk(statement):  # TABLE["key"] = … is a part of TABLE
                if isinstance(node, (ast.Name, ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                    names.add(getattr(getattr(node, "value", node), "id", AT_IMPORT))
            only_imports = all(isinstance(one, IMPORTS) for one in getattr(statement, "body", [statement]))
            for name in () if only_imports else sorted(names) or [AT_IMPORT]:  # a set has another order in each process
                self.statements.setdefault(name, []).append(statement)


class Reach(ast.NodeTransformer):
    """What cells reach: ``texts`` of code in the order of discovery, ``modules``, and the data ``files`` they name."""

    def __init__(self, cells: list[ast.Module]) -> None:
        """Follow every name from the cells on."""
        self.modules: dict[Path, Module] = {}
        self.order: list[Place] = []
        self.numbers: dict[Place, int] = {}
        self.files: set[Path] = set()
        places = [settings.ROOT / place for place in ("helpers", "notebooks/lessons", "data")]
        readers = {settings.EXPORTS, settings.IMAGES}  # and rows of results, .jsonl: they are not the course's
        there = [file for place in places for file in sorted(place.rglob("*.*")) if not readers & {*file.parents}]
        written = ("accuracy.csv",)  # by the notebooks themselves, as the rows of *.jsonl are
        self.nameable = [file for file in there if file.suffix not in (".jsonl", ".pyc") and file.name not in written]
        everything = ast.Module([statement for cell in cells for statement in cell.body], [])
        self.module = Module(settings.NOTEBOOKS / "cells", everything)
        self.module.statements = {}  # a cell's own names are in the texts anyway
        self.texts = [ast.unparse(self.visit(cell)) for cell in cells]
        for file, name in self.order:  # which grows meanwhile
            self.module = self._load(file)
            if name not in self.module.statements:  # the module itself, or a name that is made as it runs
                for each in self.module.statements:
                    self._point(Place(file, each))
            for statement in self.module.statements.get(str(name), ()):
                self.texts.append(ast.unparse(self.visit(statement)))

    def hash(self) -> str:
        """Return the SHA-256 of all that a notebook's outputs depend on; line ends do not count."""
        digest = hashlib.sha256("\0".join(self.texts).encode())
        for file in sorted(self.files, key=lambda file: file.name):
            digest.update(b"\0" + file.read_bytes().replace(b"\r\n", b"\n"))
        return digest.hexdigest()

    def modules_hash(self) -> str:
        """Return the SHA-256 of the modules reached, whole: where it alone is another, outputs should be the same."""
        return hashlib.sha256("\0".join(sorted(ast.unparse(_read(file)) for file in self.modules)).encode()).hexdigest()

    def _load(self, file: Path) -> Module:
        if file not in self.modules:
            self.modules[file] = Module(file, _read(file))
            if AT_IMPORT in self.modules[file].statements:
                self._point(Place(file, AT_IMPORT))
            if (file.parent / "__init__.py").exists():
                self._load(file.parent)
        return self.modules[file]

    def _point(self, place: Place) -> ast.Name:
        if place not in self.numbers:
            self.numbers[place] = len(self.order)
            self.order.append(place)
        return ast.Name(f"{place.name}_{self.numbers[place]}", ast.Load())

    def _meaning(self, node: ast.AST) -> Place | None:
        """Return what of the course a name or an attribute stands for."""
        place = None
        if isinstance(node, ast.Name):
            own = Place(self.module.file, node.id) if node.id in self.module.statements else None
            place = self.module.imported.get(node.id, own)
        elif isinstance(node, ast.Attribute) and (owner := self._meaning(node.value)) and not owner.name:
            place = owner.member(node.attr)
        while place and place.name and (further := self._load(place.file).imported.get(place.name)):
            place = further
        return place

    def visit_Name(self, node: ast.Name | ast.Attribute) -> ast.AST:
        """Note what a name stands for, and write that instead of it, so that no module's name counts."""
        place = None if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else self._meaning(node)
        return self._point(place) if place else self.generic_visit(node)

    visit_Attribute = visit_Name

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> ast.AST | None:
        """Leave the course's own imports out."""
        module = getattr(node, "module", None)
        node.names = [one for one in node.names if (module or one.name).partition(".")[0] not in OURS]
        return node if node.names else None

    visit_ImportFrom = visit_Import

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Take a file's name with a gap in it as a pattern."""
        self._named("".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values))
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Look for names of files in strings."""
        if isinstance(node.value, str):
            self._named(node.value)
        return node

    def _named(self, text: str) -> None:
        """Take in what a text names: a module or package (as after ``-m``), a program, or data; ``*`` is a gap."""
        words = [word.strip(".") for word in re.split(r"""[\s/\\'"`(),:;=]+""", text)]
        words = [word for word in words if re.search(r"\.[a-z]\w*$", word)]
        for file in self.nameable if words else ():
            dotted = ".".join(file.relative_to(settings.ROOT).with_suffix("").parts)
            is_module = any(fnmatchcase(f"{dotted}.", f"{text.strip('.')}.{end}") for end in ("", "*"))
            if file.suffix == ".py" and (is_module or file.name in words):
                self._point(Place(file))
            elif file.suffix != ".py" and any(fnmatchcase(file.name, word) for word in words):
                self.files.add(file)
