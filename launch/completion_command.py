"""Prints a script by which bash or zsh completes `randcond`: commands, stages, experiments, flags and keys.

The script holds all names, so that completing starts no Python.
"""

import inspect
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from randcond.launch.command_stubs import commands_of
from randcond.launch.config.experiments import experiment_names, table_names
from randcond.launch.config.gpus import GPUS
from randcond.launch.config.parsing import near
from randcond.launch.config.paths import PACKAGE
from randcond.launch.config.strict_yaml import read_yaml
from randcond.launch.config_command import Key, all_keys
from randcond.launch.errors import UserError

_WRAPPERS = {
    "bash": """
_randcond() {
  local line=${COMP_LINE:0:COMP_POINT} word before IFS=$' \\t\\n' each
  word=${line##*[[:space:]]}
  read -ra before <<< "${line%"$word"}"
  COMPREPLY=()
  while IFS= read -r each; do
    case $each in
      :files) compopt -o filenames; while IFS= read -r each; do COMPREPLY+=("$each"); done \
        < <(compgen -f -- "${word##*=}") ;;
      *) COMPREPLY+=("$each") ;;
    esac
  done < <(_randcond_names "$word" "${before[@]}")
  [ "${#COMPREPLY[@]}" != 1 ] || [ "${COMPREPLY[0]%=}" = "${COMPREPLY[0]}" ] || compopt -o nospace
}
complete -F _randcond randcond
""",
    "zsh": """
_randcond() {
  local -a names
  names=("${(@f)$(_randcond_names "$PREFIX" "${(@)words[1,CURRENT-1]}")}")
  compset -P '*='
  [[ -z ${(M)names:#:files} ]] || _files
  names=(${names:#:files})
  compadd -S '' -q -- ${(M)names:#*=}
  compadd -- ${names:#*=}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _randcond randcond
""",
}
_NAMES = """
# Prints what fits a word, one a line; :files stands for names of files. Arguments: the word, then all words before it.
_randcond_names() {{
  [ -z "${{ZSH_VERSION-}}" ] || emulate -L sh
  local word=$1 path flags takes kinds last each
  shift 2
  if [ $# = 0 ]; then _randcond_fits "$word" {commands}; return; fi
  path=$1; shift
  case $path in
{groups}
  esac
  flags= takes= kinds=files
  case $path in
{paths}
  esac
  last=
  for each in "$@"; do last=$each; done
  case $word in
    -*=*) _randcond_values "${{word%%=*}}" "${{word#*=}}"; return ;;
    -*) _randcond_fits "$word" $flags --help; return ;;
    *=*) _randcond_values "${{word%%=*}}" "${{word#*=}}"; return ;;
  esac
  case " $takes " in *" ${{last:-none}} "*) _randcond_values "$last" "$word"; return ;; esac
  last=
  for each in "$@"; do  # each positional word takes the next kind; the last kind repeats
    case " $takes " in *" ${{last:-none}} "*) last=; continue ;; esac
    last=$each
    case $each in -*) continue ;; esac
    case $kinds in *" "*) kinds=${{kinds#* }} ;; esac
  done
  case ${{kinds%% *}} in
    stage) _randcond_fits "$word" {stages} ;;
    experiment) _randcond_fits "$word" {experiments} ; echo :files ;;
    keys) _randcond_fits "$word" {overrides} ;;
    key) _randcond_fits "$word" {keys} ;;
    input) _randcond_fits "$word" {inputs} ;;
    shell) _randcond_fits "$word" bash zsh ;;
    *) echo :files ;;
  esac
}}
_randcond_fits() {{
  local start=$1 each
  shift
  for each in "$@"; do case $each in "$start"*) printf '%s\\n' "$each" ;; esac; done
}}
_randcond_values() {{
  case $1 in
{values}
    *) echo :files ;;
  esac
}}
"""
_KINDS = {  # parameter of a command -> the kind of its words
    "stage": "stage",
    "experiment": "experiment",
    "names": "experiment",
    "overrides": "keys",
    "key": "key",
    "shell": "shell",
}
_FLAG_VALUES: dict[str, Iterable[str]] = {
    "--launcher": ("deepspeed", "torchrun", "slurm"),
    "--gpu": GPUS,
    "--dtype": ("fp32", "bf16", "fp16"),
    "--weights": ("raw", "ema"),
}


def completion(shell: str) -> None:
    """Prints a script that completes commands, stages, experiments, flags and keys in bash or zsh.

    shell     bash or zsh

    examples  eval "$(randcond completion bash)"          # in ~/.bashrc
              eval "$(randcond completion zsh)"           # in ~/.zshrc
    """
    if shell not in _WRAPPERS:
        raise UserError(f"completion: unknown shell {shell!r}; known: bash, zsh{near(shell, list(_WRAPPERS))}")
    print(_names_script() + _WRAPPERS[shell], end="")


def _names_script() -> str:
    """Returns the function that both shells share."""
    from randcond.launch.cli import CHOICES, GROUPS, TOOLS, run

    groups = {group: commands_of(module) for group, module in GROUPS.items()}
    commands: dict[str, Callable[..., None]] = {"run": run, "launch": run}
    commands |= {tool: commands_of(module)[tool] for tool, module in TOOLS.items()}
    commands |= {f"{group} {name}": each for group, its in groups.items() for name, each in its.items()}
    keys = list(all_keys())
    sections = dict.fromkeys(key.name.partition(".")[0] for key in keys)
    return _NAMES.format(
        commands=shlex.join(["run", "launch", *GROUPS, *TOOLS, "--help", "--version"]),
        groups="\n".join(
            f'    {group}) if [ $# = 0 ]; then _randcond_fits "$word" {shlex.join(its)}; return; fi; '
            f'path="$path $1"; shift ;;'
            for group, its in groups.items()
        ),
        paths="\n".join(_path(path, command) for path, command in commands.items()),
        stages=shlex.join(CHOICES),
        experiments=shlex.join([*experiment_names(), *table_names()]),
        overrides=shlex.join(f"{key.name}=" for key in keys),
        keys=shlex.join([*sections, *(key.name for key in keys)]),
        inputs=shlex.join(read_yaml(PACKAGE / "data/inputs/inputs.yaml")),
        values="\n".join(_values(keys)),
    ).lstrip()


def _path(path: str, command: Callable[..., Any]) -> str:
    """Returns the case of one command: its flags, those that take a value, and the kinds of its other words."""
    parameters = inspect.signature(command).parameters.values()
    flags = {f"--{p.name.strip('_').replace('_', '-')}": p for p in parameters if p.kind is p.KEYWORD_ONLY}
    takes = [flag for flag, p in flags.items() if p.annotation is not bool]
    kinds = [_kind(path, p.name) for p in parameters if p.kind is not p.KEYWORD_ONLY]
    return f"    {shlex.quote(path)}) flags='{' '.join(flags)}' takes='{' '.join(takes)}' kinds='{' '.join(kinds)}' ;;"


def _kind(path: str, parameter: str) -> str:
    return "input" if (path, parameter) == ("fetch", "name") else _KINDS.get(parameter, "files")


def _values(keys: list[Key]) -> Iterator[str]:
    """Yields the cases of flags and keys whose values are known."""
    known = {flag: list(values) for flag, values in _FLAG_VALUES.items()}
    for key in keys:
        kind = key.kind.removesuffix(" or null")
        if kind == "bool":
            known[key.name] = ["true", "false"]
        elif ", " in kind and not kind.startswith(("list", "mapping")):
            known[key.name] = kind.split(", ")
    for name, values in known.items():
        yield f'    {name}) _randcond_fits "$2" {shlex.join(values)} ;;'
