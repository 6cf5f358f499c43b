"""Shows the keys of an experiment's YAML: type, default, meaning and an example; or their JSON schema for editors."""

import dataclasses
import json

from randcond.launch.config.parsing import near
from randcond.launch.errors import UserError
from randcond.launch.keys import Key, all_keys, json_schema, yaml_value


def config(key: str = "", *, schema: bool = False) -> None:
    """Lists the keys of an experiment's YAML: type, default, meaning, and an example of an override.

    key       a section (train) or a key (train.lr); default: all
    --schema  prints the JSON schema instead, with which editors complete YAML

    examples
      randcond config train
      randcond config conditioning.p
      randcond config --schema > randcond.schema.json
    """
    if schema:
        print(json.dumps(json_schema(), indent=2))
        return
    keys = list(all_keys())
    name = key.strip(".")
    found = [each for each in keys if not name or each.name == name or each.name.startswith(f"{name}.")]
    if not found:
        known = sorted({each.name for each in keys} | {each.name.partition(".")[0] for each in keys})
        last = [each for each in known if each.rpartition(".")[2] == name]
        said = f"; did you mean {' or '.join(map(repr, last))}?" if last else near(name, known)
        raise UserError(f"no key {name!r}{said}; `randcond config` lists all keys")
    print("\n\n".join(map(_text, found)) if len(found) < 4 else "\n".join(map(_line, found)))


def _line(key: Key) -> str:
    default = "" if key.default is dataclasses.MISSING else f" = {yaml_value(key.default)}"
    return f"{key.name}: {key.kind}{default}\n    {key.meaning}"


def _text(key: Key) -> str:
    default = "must be given" if key.default is dataclasses.MISSING else yaml_value(key.default)
    return f"{key.name}\n  {key.meaning}\n  type     {key.kind}\n  default  {default}\n  example  {key.example}"
