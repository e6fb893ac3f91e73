"""Rows of memory to lanes and back: 8 x 8 blocks of float32, 4 x 4 of float64, transposed in registers.

A scalar loop takes 1 to 2 ns a row element, a quarter of a tile's whole time at `Banded(8)`; this takes about a tenth.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from subquad.kernels.jit import device
from subquad.kernels.memory import emit_load, emit_store, get, put, store
from subquad.kernels.simd import LANES, width_of

_INDEX = ir.IntType(64)
_OFFSETS = types.CPointer(types.int64)


def _half(lanes):
    """Rows and columns of a block, and its row type: half a vector."""
    width = lanes.count // 2
    return width, ir.VectorType(lanes.ir_element, width)


def _emit_transpose(builder, rows):
    """Swap ever smaller off-diagonal blocks of a square of vectors."""
    width = len(rows)
    step = width // 2
    while step:
        for i in range(width):
            if i & step:
                continue
            a, b = rows[i], rows[i + step]
            low = [lane if not lane & step else width + lane - step for lane in range(width)]
            high = [lane + step if not lane & step else width + lane for lane in range(width)]
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), width), m) for m in (low, high)]
            rows[i], rows[i + step] = (builder.shuffle_vector(a, b, mask) for mask in masks)
        step //= 2
    return rows


def _address(builder, pointer, offset, vector_type):
    return builder.bitcast(builder.gep(pointer, [offset]), vector_type.as_pointer())


def _half_of(builder, lanes, value, part):
    width, _ = _half(lanes)
    picked = [part * width + lane for lane in range(width)]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), width), picked)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _emit_row_starts(builder, lanes, pointer, row_table, row_step, part):
    """Where the rows of one half of the lanes begin."""
    width = lanes.count // 2
    rows = [builder.load(builder.gep(row_table, [ir.Constant(_INDEX, part * width + i)])) for i in range(width)]
    return [builder.gep(pointer, [builder.mul(row, row_step)]) for row in rows]


@intrinsic
def _blocks_in(typing_context, x_t, x, row_table, row_step, n_columns, factor):
    """x_t[c, i] = factor[i] x[row i, c] for every lane i and the first n_columns columns, a whole number of blocks."""
    lanes = LANES[x.dtype]

    def codegen(context, builder, sig, args):
        x_t_, x_, row_table_, row_step_, n_columns_, factor_ = args
        width, vector_type = _half(lanes)
        for part in range(2):
            starts = _emit_row_starts(builder, lanes, x_, row_table_, row_step_, part)
            scale = _half_of(builder, lanes, factor_, part)
            with cgutils.for_range_slice(builder, ir.Constant(_INDEX, 0), n_columns_, ir.Constant(_INDEX, width)) as (
                c,
                _,
            ):
                rows = [emit_load(builder, x.dtype, builder.gep(start, [c]), width) for start in starts]
                corner = builder.gep(x_t_, [builder.mul(c, ir.Constant(_INDEX, lanes.count))])
                for k, column in enumerate(_emit_transpose(builder, rows)):
                    offset = ir.Constant(_INDEX, k * lanes.count + part * width)
                    address = _address(builder, corner, offset, vector_type)
                    builder.store(builder.fmul(column, scale), address, align=lanes.bits // 8)
        return context.get_dummy_value()

    return types.void(x_t, x, _OFFSETS, types.intp, types.intp, lanes), codegen


@intrinsic
def _blocks_out(typing_context, x, x_t, row_table, row_step, n_columns, factor):
    """x[row i, c] = factor[i] x_t[c, i] for every lane i and the first n_columns columns, a whole number of blocks."""
    lanes = LANES[x.dtype]

    def codegen(context, builder, sig, args):
        x_, x_t_, row_table_, row_step_, n_columns_, factor_ = args
        width, vector_type = _half(lanes)
        for part in range(2):
            starts = _emit_row_starts(builder, lanes, x_, row_table_, row_step_, part)
            scale = _half_of(builder, lanes, factor_, part)
            with cgutils.for_range_slice(builder, ir.Constant(_INDEX, 0), n_columns_, ir.Constant(_INDEX, width)) as (
                c,
                _,
            ):
                corner = builder.gep(x_t_, [builder.mul(c, ir.Constant(_INDEX, lanes.count))])
                columns = []
                for k in range(width):
                    offset = ir.Constant(_INDEX, k * lanes.count + part * width)
                    column = builder.load(_address(builder, corner, offset, vector_type), align=lanes.bits // 8)
                    columns.append(builder.fmul(column, scale))
                for row, start in zip(_emit_transpose(builder, columns), starts, strict=True):
                    emit_store(builder, x.dtype, row, builder.gep(start, [c]))
        return context.get_dummy_value()

    return types.void(x, x_t, _OFFSETS, types.intp, types.intp, lanes), codegen


@device
def rows_to_lanes(x_t, x, row_table, row_step, column_step, columns, factor, spare):
    """x_t[c, i] = factor[i] x[row_table[i] row_step + c column_step]; `spare` is a vector of scratch."""
    lanes, done = width_of(x), np.int64(0)
    if column_step == 1:
        done = columns // (lanes // 2) * (lanes // 2)
        _blocks_in(x_t, x, row_table, row_step, done, factor)
    if done < columns:
        store(spare, 0, factor)
    for column in range(done, columns):
        for i in range(lanes):
            x_t[column * lanes + i] = get(x, row_table[i] * row_step + column * column_step) * spare[i]


@device
def lanes_to_rows(x, x_t, row_table, row_step, column_step, columns, factor, count, spare):
    """x[row_table[i] row_step + c column_step] = factor[i] x_t[c, i] for the first `count` lanes."""
    lanes, done = width_of(x), np.int64(0)
    if column_step == 1 and count == lanes:
        done = columns // (lanes // 2) * (lanes // 2)
        _blocks_out(x, x_t, row_table, row_step, done, factor)
    if done < columns:
        store(spare, 0, factor)
    for i in range(count):
        for column in range(done, columns):
            put(x, row_table[i] * row_step + column * column_step, x_t[column * lanes + i] * spare[i])
