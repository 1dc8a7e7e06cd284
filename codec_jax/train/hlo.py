"""What the text of an optimised HLO module tells of one execution: bytes moved, cycles, and shapes that should not be.

The compiler's own `cost_analysis` counts the body of a loop once; here every computation counts as often as it runs.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_WIDTHS = {"pred": 1.0, "c64": 8.0, "c128": 16.0}
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
# What moves no bytes of its own.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "send", "recv",
}  # fmt: skip


class Shape(NamedTuple):
    """One array: dtype, dimensions, and its layout as printed."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> float:
        """Without padding."""
        return math.prod(self.dims) * _width(self.dtype)

    @property
    def hbm_bytes(self) -> float:
        """In main memory, padded to its tiles; 0 where the compiler keeps it on the chip."""
        return 0.0 if "S(" in self.layout else math.prod(self._padded()) * _width(self.dtype)

    def _padded(self) -> list[int]:
        order, _, tiles = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        dims = [self.dims[int(i)] for i in order.split(",") if i]  # the fastest first
        if tile is None or not dims:
            return list(self.dims)
        sizes = [int(size) for size in reversed(tile.group(1).split(","))]
        tiled = [-(-dim // size) * size for dim, size in zip(dims, sizes)]
        return tiled + dims[len(tiled) :]


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    line: str
    root: bool


Module = dict[str, list[Instruction]]
ENTRY = "ENTRY"


class Traffic(NamedTuple):
    """Of one device and one execution.

    collectives: result bytes by kind; of a reduce-scatter, what it reduces. dcn: bytes sent to other slices. memory:
    bytes that kernels read from and write to HBM, padded to tiles. cycles: the compiler's estimate, kernels one after
    the other, without collectives.
    """

    collectives: dict[str, float]
    dcn: float
    memory: float
    cycles: float


def traffic(text: str) -> Traffic:
    """Adds up an optimised module, as `compiled.as_text()` prints it."""
    module = parse(text)
    sent: dict[str, tuple[str, float]] = {}
    dcn = memory = cycles = 0.0
    for name, times in executions(module).items():
        for instruction in module[name]:
            if (kind := _collective(instruction, name)) is not None:
                key = _key(instruction, name)
                size = times * _result_bytes(instruction)
                sent[key] = kind, max(size, sent.get(key, (kind, 0.0))[1])
            if instruction.opcode == "send" and "megascale" in instruction.line:
                dcn += times * instruction.shapes[0].bytes
    for name, times in executions(module, kernels=False).items():
        table = {instruction.name: instruction for instruction in module[name]}
        memory += times * sum(_memory(instruction, table, module) for instruction in module[name])
        cycles += times * sum(_cycles(instruction) for instruction in module[name])
    collectives = dict.fromkeys(COLLECTIVES, 0.0)
    for kind, size in sent.values():
        collectives[kind] += size
    return Traffic(collectives, dcn, memory, cycles)


def carriers(text: str, sizes: Collection[int]) -> list[str]:
    """Instructions with a dimension of one of `sizes`, as "name dtype[dims]".

    Given the global batch, and its products with the numbers of frames, none may be found where several devices share
    it: a device holds nothing of that size unless the partitioner replicated it.
    """
    return [
        f"{instruction.name} {shape.dtype}{list(shape.dims)}"
        for computation in parse(text).values()
        for instruction in computation
        for shape in instruction.shapes
        if not set(shape.dims).isdisjoint(sizes)
    ]


# ---- reading -----------------------------------------------------------------------------------


def parse(text: str) -> Module:
    """Computations by name, the entry under ENTRY."""
    module: Module = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = module.setdefault(ENTRY if header.group(1) else header.group(2), [])
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_instruction(match, line))
    return module


def _instruction(match: re.Match[str], line: str) -> Instruction:
    rest = line[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), layout)
        for dtype, dims, layout in _SHAPE.findall(rest[:end])
    )
    opcode, _, after = rest[end:].strip().partition("(")
    inside = after[: _closing("(" + after) - 1]
    return Instruction(
        match.group(2), shapes, opcode, tuple(re.findall(r"%([\w.\-]+)", inside)), line, bool(match.group(1))
    )


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at index 0."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return index
    return len(text)


def _width(dtype: str) -> float:
    if dtype in _WIDTHS:
        return _WIDTHS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits.group(1)) / 8 if digits else 0.0


# ---- how often ---------------------------------------------------------------------------------


def executions(module: Module, kernels: bool = True) -> dict[str, float]:
    """How often every computation runs; without `kernels` those alone whose lines are kernels of their own."""
    runs: dict[str, float] = {}

    def visit(name: str, times: float) -> None:
        runs[name] = runs.get(name, 0.0) + times
        for instruction in module[name]:
            if kernels or instruction.opcode in ("while", "conditional", "call"):
                repeats = _trips(instruction, module) if instruction.opcode == "while" else 1
                for called in _called(instruction):
                    if called in module:
                        visit(called, times * repeats)

    visit(ENTRY, 1.0)
    return runs


def _called(instruction: Instruction) -> Iterator[str]:
    for group in _CALLED.findall(instruction.line):
        yield from re.findall(r"%([\w.\-]+)", group)


def _trips(instruction: Instruction, module: Module) -> int:
    """Of a loop that counts from 0 up to a constant, as every scan does; 1 where that cannot be read."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.line)
    if known:
        return int(known.group(1))
    condition = re.search(r"condition=%([\w.\-]+)", instruction.line)
    body = module.get(condition.group(1), []) if condition else []
    constants = {i.name: int(n.group(1)) for i in body if (n := re.search(r"constant\((\d+)\)", i.line))}
    for root in body:
        if root.root and "direction=LT" in root.line:
            return next((constants[name] for name in root.operands if name in constants), 1)
    return 1


# ---- how much ----------------------------------------------------------------------------------


def _collective(instruction: Instruction, computation: str) -> str | None:
    """Its kind; the TPU compiler writes a reduce-scatter as an all-reduce inside a fusion of that name."""
    kind = next((c for c in COLLECTIVES if instruction.opcode in (c, f"{c}-start")), None)
    return "reduce-scatter" if kind and computation.startswith("all-reduce-scatter") else kind


def _key(instruction: Instruction, computation: str) -> str:
    """One for every collective: an asynchronous one is printed in several computations, under one channel."""
    channel = re.search(r"channel_id=(\d+)", instruction.line)
    if channel is None or computation.startswith("all-reduce-scatter"):
        return f"{computation}/{instruction.name}"
    return channel.group(1)


def _result_bytes(instruction: Instruction) -> float:
    # Of a start: the operand, the result, and what the runtime needs.
    asynchronous = instruction.opcode.endswith("-start") and len(instruction.shapes) > 1
    shapes = instruction.shapes[1:2] if asynchronous else instruction.shapes
    return sum((shape.bytes for shape in shapes), 0.0)


def _cycles(instruction: Instruction) -> float:
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.line)
    return float(found.group(1)) if found else 0.0


def _memory(instruction: Instruction, table: Mapping[str, Instruction], module: Module) -> float:
    """HBM bytes of one kernel: what it reads and what it writes."""
    opcode, operands = instruction.opcode, [table[name] for name in instruction.operands if name in table]
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if opcode.endswith("-start"):
        return sum((shape.hbm_bytes for shape in instruction.shapes), 0.0)
    written = sum((shape.hbm_bytes for shape in instruction.shapes), 0.0)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if opcode == "dynamic-update-slice":
        return 2.0 * sum(shape.hbm_bytes for shape in operands[1].shapes) if len(operands) > 1 else 0.0
    body = module.get(next(_called(instruction), ""), []) if opcode == "fusion" else []
    read = [_read(operand, number, body) for number, operand in enumerate(operands)]
    return sum(read) + min(written, _updated(body, written))


def _read(operand: Instruction, number: int, body: list[Instruction]) -> float:
    """Bytes that a kernel reads of an operand: of one that its fusion only slices or updates in place, the slices."""
    whole = sum((shape.hbm_bytes for shape in operand.shapes), 0.0)
    parameter = next((i for i in body if i.opcode == "parameter" and f"parameter({number})" in i.line), None)
    if parameter is None or not whole:
        return whole
    uses = [i for i in body if parameter.name in i.operands]
    if uses and all(use.opcode == "dynamic-slice" for use in uses):
        return min(whole, sum(use.shapes[0].bytes for use in uses))
    if uses and all(use.opcode == "dynamic-update-slice" and use.operands[0] == parameter.name for use in uses):
        return 0.0
    return whole


def _updated(body: list[Instruction], written: float) -> float:
    """Bytes that a fusion writes, where all it does to its largest results is to update a part of them."""
    table = {i.name: i for i in body}
    saved = sum(
        i.shapes[0].bytes - table[i.operands[1]].shapes[0].bytes
        for i in body
        if i.opcode == "dynamic-update-slice" and i.operands[1] in table
    )
    return max(written - saved, 0.0)
