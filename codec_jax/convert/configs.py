"""Upstream's config files: JSON or YAML, by their suffix."""

import json
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from codec_jax import storage
from codec_jax.errors import UserError

JSON, YAML = (".json",), (".yaml", ".yml")


def read(path: epath.PathLike) -> dict[str, Any]:
    """A config file as plain data, such as JSON can hold. Raises UserError, one sentence."""
    path = epath.Path(path)
    return storage.read_json(path) if path.suffix in JSON else _read_yaml(path)


def write(path: epath.PathLike, config: Mapping[str, Any]) -> None:
    """The inverse of `read`. Comments of a YAML file are not kept."""
    path = epath.Path(path)
    if path.suffix in JSON:
        storage.write_json(path, config)
    else:
        path.write_text(yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, width=float("inf")))


def _read_yaml(path: epath.Path) -> dict[str, Any]:
    """Tags that make objects are refused by safe_load. Aliases are by us: a short file of them fills any memory."""
    try:
        text = path.read_text()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{path} refers to itself with *, which no config needs: write the values out.")
        value = yaml.safe_load(text)
        json.dumps(value)  # dates, sets and bytes are YAML too, and could not be kept beside the weights
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    except TypeError as error:
        raise UserError(f"{path} holds more than numbers, text, lists and mappings: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no YAML mapping.")
    return value


class _Dumper(yaml.SafeDumper):
    """Lists on one line, mappings on several, as upstream's files have them."""


_Dumper.add_representer(list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))
