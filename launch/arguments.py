"""The arguments of a command: checked against its function's signature, then parsed by fire.

fire calls a command before it notices an unknown flag, so it can't check them itself.
"""

import inspect
from collections.abc import Callable

from randcond.launch.config.parsing import near
from randcond.launch.errors import UserError


def call(
    prefix: str, function: Callable[..., None], words: list[str], load: Callable[[], Callable[..., None]] | None = None
) -> None:
    """Checks the arguments against the function's signature, then lets fire parse them and call the function.

    `load`: returns the function to call, if `function` only has its signature and docstring. Raises UserError that
    names an argument that is wrong or missing.
    """
    usage = f"usage: {prefix} {usage_of(function, function.__name__.rstrip('_'))}"
    if {"--help", "-h"} & set(words):
        print(f"{usage}\n\n{inspect.getdoc(function)}")
        return
    parameters = inspect.signature(function).parameters
    flags = {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    required = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    checked, positional = [], []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            checked.append(word)
            positional.append(word)
            continue
        flag, has_value, value = word.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        name = f"{name}_" if f"{name}_" in flags else name  # --from: a parameter can't be called `from`
        if name not in flags and has_value and "." in flag:
            raise UserError(f"{flag.lstrip('-')} is a key, not a flag: write {word.lstrip('-')}; {usage}")
        if name not in flags:
            raise UserError(f"unknown flag {word}{near(flag, list(map(_flag, flags)))}; {usage}")
        if flags[name].annotation is bool:
            if has_value and value not in ("True", "False"):
                raise UserError(f"{flag} takes no value; {usage}")
            value = value or "True"
        elif not has_value:
            value = next(rest, "")
            if not value or value.partition("=")[0].replace("_", "-") in map(_flag, flags):
                hint = f"; if {value!r} is the value, write {flag}={value!r}" if value else ""
                raise UserError(f"{flag} needs a value{hint}; {usage}")
        if "int" in str(flags[name].annotation):
            if not (value.isascii() and value.isdigit()):
                raise UserError(f"{flag} needs a whole number, got {value!r}")
            value = str(int(value))  # fire would keep 08 as text
        checked.append(f"--{name}={value}")
    if len(positional) < len(required):
        raise UserError(f"{required[len(positional)]} is missing; {usage}")
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    surplus = positional[sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values()) :]
    if surplus and not variadic:
        raise UserError(f"unexpected argument{'s' * (len(surplus) > 1)}: {' '.join(map(repr, surplus))}; {usage}")

    import fire
    from fire.decorators import SetParseFn

    function = load() if load else function
    texts = [name for name, p in parameters.items() if "int" not in str(p.annotation) and p.annotation is not bool]
    parse = SetParseFn(str, *texts)(SetParseFn(str)(function) if variadic else function)
    if variadic:  # fire takes no parser for *words by name: they use the default parser, so flags get their own
        numbers = [name for name in flags if name not in texts]
        parse = SetParseFn(fire.parser.DefaultParseValue, *numbers)(parse)
    fire.Fire(parse, command=checked, name=prefix)


def usage_of(function: Callable[..., None], name: str) -> str:
    """Returns a command's name and parameters, as shown in its usage line."""
    words = [name]
    for parameter in inspect.signature(function).parameters.values():
        flag = _flag(parameter.name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"[{parameter.name.upper()} ...]")
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            word = parameter.name.upper()
            words.append(word if parameter.default is parameter.empty else f"[{word}]")
        else:
            value = "N" if "int" in str(parameter.annotation) else parameter.name.strip("_").upper()
            words.append(f"[{flag}]" if parameter.annotation is bool else f"[{flag} {value}]")
    return " ".join(words)


def _flag(name: str) -> str:
    return f"--{name.strip('_').replace('_', '-')}"
