"""The signatures and help of commands, read from the text of their modules without importing them.

Importing torch takes seconds. So help, usage and mistakes in arguments come before the import.
"""

import ast
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., None]


def commands_of(module: str) -> dict[str, Command]:
    """Returns the commands of a module by name: functions with their signature and docstring, which do nothing.

    A group of commands lists its functions in COMMANDS. In a module without COMMANDS, all functions are returned.
    """
    tree = _tree(module)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    listed = [name.id for name in ast.walk(_assigned(tree, "COMMANDS")) if isinstance(name, ast.Name)]
    return {name.rstrip("_"): _stub(functions[name]) for name in listed or functions if not name.startswith("_")}


def docstring_of(module: str) -> str:
    """Returns the docstring of a module."""
    return ast.get_docstring(_tree(module)) or ""


def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _assigned(tree: ast.Module, name: str) -> ast.AST:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    return ast.Tuple(elts=[], ctx=ast.Load())


def _stub(node: ast.FunctionDef) -> Command:
    """Returns a function with the signature and docstring of another one."""

    def stub(*_: object, **__: object) -> None:
        raise NotImplementedError(f"{node.name} is only described here")

    given, kinds = node.args, inspect.Parameter
    parameters = []
    missing: list[ast.expr | None] = [None] * (len(given.args) - len(given.defaults))
    for argument, default in zip(given.args, [*missing, *given.defaults], strict=True):
        parameters.append(_parameter(argument, kinds.POSITIONAL_OR_KEYWORD, default))
    if given.vararg:
        parameters.append(_parameter(given.vararg, kinds.VAR_POSITIONAL, None))
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        parameters.append(_parameter(argument, kinds.KEYWORD_ONLY, default))
    stub.__name__ = node.name
    stub.__doc__ = ast.get_docstring(node, clean=False)
    stub.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return stub


def _parameter(argument: ast.arg, kind: Any, default: ast.expr | None) -> inspect.Parameter:
    """Returns a parameter. Its annotation is `bool`, or a text; a default that is no constant is a text, too."""
    annotation: Any = ast.unparse(argument.annotation) if argument.annotation else inspect.Parameter.empty
    value: Any = inspect.Parameter.empty
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            value = ast.unparse(default)
    annotation = bool if annotation == "bool" else annotation
    return inspect.Parameter(argument.arg, kind, default=value, annotation=annotation)
