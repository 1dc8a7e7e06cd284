"""The YAML that config files are written in: mappings, lists, plain and quoted scalars, comments. Read as YAML 1.1.

Anything else (anchors, tags, block text, several documents) is refused, so that what is read is what YAML means.
"""

import re
from typing import Any

_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "yes": True, "on": True}
_CONSTANTS |= {"false": False, "no": False, "off": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9]\d*)")
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]\d+)?")
_CONTENT = re.compile(r"""((?:[^'"#]|'[^']*'|"[^"\\]*"|(?<=\S)#)*)(?:(?<!\S)#.*)?""")
_KEY = re.compile(r"""([^\s\[\]{},:&*!|>'"%@`#?-][^\[\]{},:]*)\s*:(?:\s+(.*))?""")
_UNREAD = tuple("&*!|>'\"%@`?]},{")
_FLOW = re.compile(r"""\s*([\[{]|'[^']*'|"[^"\\]*"|[^\[\],{}'"]+)""")
_FLOW_KEY = re.compile(r"\s*([\w.-]+)\s*:\s")


def parse(text: str) -> Any:
    """A document as plain data. ValueError: it is not of the kind described above."""
    lines: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = _CONTENT.fullmatch(line)
        if match is None or "\t" in line:
            raise ValueError(f"{line.strip()!r} is more than plain YAML.")
        content = match[1].rstrip()
        if content.strip() and not (content == "---" and not lines):
            lines.append((len(content) - len(content.lstrip()), content.strip()))
    lines.reverse()  # the next one is last
    value = _block(lines, lines[-1][0]) if lines else None
    if lines:
        raise ValueError(f"{lines[-1][1]!r} is not indented as what comes before it.")
    return value


def _block(lines: list[tuple[int, str]], indent: int) -> Any:
    """The mapping or list that begins at the next line, `indent` deep."""
    if _is_item(lines[-1][1]):
        return _list(lines, indent)
    found: dict[str, Any] = {}
    while lines and lines[-1][0] == indent and not _is_item(lines[-1][1]):
        content = lines.pop()[1]
        match = _KEY.fullmatch(content)
        if match is None or match[1] in found:
            raise ValueError(f"{content!r} is more than plain YAML.")
        found[match[1].rstrip()] = _value(lines, indent, match[2] or "")
    return found


def _list(lines: list[tuple[int, str]], indent: int) -> list[Any]:
    found = []
    while lines and lines[-1][0] == indent and _is_item(lines[-1][1]):
        rest = lines.pop()[1][1:]
        inner = indent + 1 + len(rest) - len(rest.lstrip())
        if _is_item(rest.strip()) or _KEY.fullmatch(rest.strip()):
            lines.append((inner, rest.strip()))
            found.append(_block(lines, inner))
        else:
            found.append(_value(lines, indent, rest.strip()))
    return found


def _is_item(content: str) -> bool:
    return content == "-" or content.startswith("- ")


def _value(lines: list[tuple[int, str]], indent: int, rest: str) -> Any:
    """What stands behind a key or dash: on its line, or deeper. Lists of a mapping may be as deep as it is."""
    if rest.startswith(("[", "{")):
        while _open(rest) and lines and lines[-1][0] > indent:
            rest += " " + lines.pop()[1]
        value, rest = _flow(rest)
        if rest.strip():
            raise ValueError(f"{rest!r} stands behind a list or mapping.")
        return value
    if not rest and lines and (lines[-1][0] > indent or (lines[-1][0] == indent and _is_item(lines[-1][1]))):
        return _block(lines, lines[-1][0])
    return _scalar(rest)


def _open(text: str) -> bool:
    return text.count("[") + text.count("{") > text.count("]") + text.count("}")


def _flow(text: str) -> tuple[Any, str]:
    """The list, mapping or scalar that `text` begins with, and what follows."""
    match = _FLOW.match(text)
    if match is None:
        raise ValueError(f"{text!r} is more than plain YAML.")
    token, text = match[1], text[match.end() :]
    if token not in ("[", "{"):
        return _scalar(token.strip()), text
    items, end = [], {"[": "]", "{": "}"}[token]
    while not text.lstrip().startswith(end):
        key = None
        if token == "{":
            named = _FLOW_KEY.match(text)
            if named is None:
                raise ValueError(f"{text!r} is more than plain YAML.")
            key, text = named[1], text[named.end() :]
        value, text = _flow(text)
        items.append((key, value))
        text = text.lstrip()
        if text.startswith(","):
            text = text[1:]
        elif not text.startswith(end):
            raise ValueError(f"a list or mapping has no {end}.")
    found: Any = dict(items) if token == "{" else [value for _, value in items]
    return found, text.lstrip()[1:]


def _scalar(text: str) -> Any:
    if text[:1] in ("'", '"') and len(text) > 1 and text[-1] == text[0]:
        return text[1:-1]
    if text.startswith(_UNREAD) or ": " in text:
        raise ValueError(f"{text!r} is more than plain YAML.")
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
