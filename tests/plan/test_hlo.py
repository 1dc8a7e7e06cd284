"""The text of optimised HLO modules, read: a hand-written one, and one that XLA prints here."""

import jax
import jax.numpy as jnp
import pytest

from codec_jax.train import hlo

TEXT = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%gather_fusion (p: bf16[4,1024]) -> bf16[1024,1024] {
  %p = bf16[4,1024]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.9 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%all-reduce-scatter.3 (q: f32[8,128]) -> f32[2,128] {
  %q = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.4 = f32[8,128]{1,0:T(8,128)} all-reduce(%q), channel_id=1, to_apply=%add
  ROOT %cut = f32[2,128]{1,0:T(2,128)} slice(%all-reduce.4), slice={[0:2], [0:128]}
}

%slices (stacked: f32[5,8,128], index: s32[]) -> f32[1,8,128] {
  %stacked = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %index = s32[] parameter(1)
  ROOT %one = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%stacked, %index), dynamic_slice_sizes={1,8,128}
}

%body (state: (s32[], f32[5,8,128])) -> (s32[], f32[5,8,128]) {
  %state = (s32[], f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %xs = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %x = f32[1,8,128]{2,1,0:T(8,128)} fusion(%xs, %i), kind=kLoop, calls=%slices, backend_config={"estimated_cycles":"100"}
  %w = bf16[4,1024]{1,0:T(8,128)(2,1)S(1)} broadcast(%i), dimensions={}, backend_config={"estimated_cycles":"10"}
  %all-gather.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} all-gather(%w), channel_id=7, dimensions={0}
  %again = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%w), kind=kCustom, calls=%gather_fusion
  ROOT %next = (s32[], f32[5,8,128]{2,1,0:T(8,128)}) tuple(%i, %xs)
}

%cond (state.1: (s32[], f32[5,8,128])) -> pred[] {
  %state.1 = (s32[], f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %five = s32[] constant(5)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %lt = pred[] compare(%j, %five), direction=LT
}

ENTRY %main (a: f32[8,100], b: f32[5,8,128]) -> f32[2,128] {
  %a = f32[8,100]{1,0:T(8,128)} parameter(0)
  %b = f32[5,8,128]{2,1,0:T(8,128)} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[5,8,128]{2,1,0:T(8,128)}) tuple(%zero, %b)
  %loop = (s32[], f32[5,8,128]{2,1,0:T(8,128)}) while(%start), condition=%cond, body=%body
  %padded = f32[8,128]{1,0:T(8,128)} pad(%a, %zero), padding=0_0x0_28, backend_config={"estimated_cycles":"7"}
  %move = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%padded)
  %moved = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%move)
  %send.1 = (f32[2,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%b), channel_id=3, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %out = f32[2,128]{1,0:T(2,128)} fusion(%moved), kind=kOutput, calls=%all-reduce-scatter.3
}
"""
TILE = 8 * 128 * 4


def test_computations_run_as_often_as_their_loops():
    module = hlo.parse(TEXT)
    runs = hlo.executions(module)
    assert (runs[hlo.ENTRY], runs["body"], runs["gather_fusion"], runs["all-reduce-scatter.3"]) == (1, 5, 5, 1)
    assert set(hlo.executions(module, kernels=False)) == {hlo.ENTRY, "body", "cond"}


def test_traffic():
    moved = hlo.traffic(TEXT)
    # Printed twice, under one channel; gathered five times.
    assert moved.collectives["all-gather"] == 5 * 1024 * 1024 * 2
    assert moved.collectives["reduce-scatter"] == 8 * 128 * 4  # what is reduced
    assert moved.collectives["all-reduce"] == moved.collectives["all-to-all"] == 0
    assert moved.dcn == 2 * 8 * 128 * 4
    assert moved.cycles == 7 + 5 * 110
    # Five slices of one tile read and written, not the whole stack. The pad reads and writes a tile, and the copy
    # reads one: 100 columns take 128, and S(1) is on the chip. The result is a quarter of a tile.
    scalars = 5 * (4 + 4 + 9) + 4  # indices, the comparison, the value padded with
    assert moved.memory == 5 * 2 * TILE + 2 * TILE + TILE + TILE / 4 + scalars


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[3,5]{1,0:T(8,128)}", 8 * 128 * 4),
        ("bf16[2,9,130]{2,1,0:T(8,128)(2,1)}", 2 * 16 * 256 * 2),
        ("bf16[2,9,130]{0,2,1:T(8,128)(2,1)}", 9 * 136 * 128 * 2),
        ("f32[300]{0:T(256)}", 512 * 4),
        ("pred[7]{0:T(256)}", 256),
        ("f32[3,5]{1,0}", 60),
        ("f32[]", 4),
        ("f32[3,5]{1,0:T(8,128)S(1)}", 0),
    ],
)
def test_bytes_in_memory_are_padded_to_tiles(shape, size):
    module = hlo.parse(f"ENTRY %main (a: f32[]) -> f32[] {{\n  ROOT %a = {shape} parameter(0)\n}}\n")
    assert module[hlo.ENTRY][0].shapes[0].hbm_bytes == size


def test_carriers():
    assert hlo.carriers(TEXT, {5})  # the stack
    assert hlo.carriers(TEXT, {17}) == []
    found = hlo.carriers(TEXT, {1024})
    assert "all-gather.1 bf16[1024, 1024]" in found
    assert "w bf16[4, 1024]" in found


def test_a_scan_that_xla_compiled():
    @jax.jit
    def scanned(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    compiled = scanned.lower(jnp.zeros((8, 16)), jnp.zeros((6, 16, 16))).compile()
    module = hlo.parse(compiled.as_text())
    runs = hlo.executions(module)
    assert 6 in runs.values()
    assert hlo.traffic(compiled.as_text()).memory > 6 * 16 * 16 * 4
