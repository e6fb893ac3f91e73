"""Rows of memory to lanes and back: 8 x 8 blocks of float32, 4 x 4 of float64, transposed in registers.

A scalar loop takes 1 to 2 ns a row element, a quarter of a tile's whole time at `Banded(8)`; this takes about a tenth.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from subquad.kernels.jit import device
from subquad.kernels.simd import LANES, at, store, width_of

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


def _row_address(builder, lanes, pointer, row_table, row_step, lane):
    row = builder.load(builder.gep(row_table, [ir.Constant(_INDEX, lane)]))
    return _address(builder, pointer, builder.mul(row, row_step), _half(lanes)[1])


@intrinsic
def _block_in(typing_context, x_t, x, row_table, row_step, factor):
    """x_t[c, i] = factor[i] x[row i, c] for the columns of one block and every lane i."""
    lanes = LANES[x.dtype]

    def codegen(context, builder, sig, args):
        x_t_, x_, row_table_, row_step_, factor_ = args
        width, vector_type = _half(lanes)
        for part in range(2):
            addresses = [
                _row_address(builder, lanes, x_, row_table_, row_step_, part * width + i) for i in range(width)
            ]
            rows = [builder.load(address, align=lanes.bits // 8) for address in addresses]
            scale = _half_of(builder, lanes, factor_, part)
            for c, column in enumerate(_emit_transpose(builder, rows)):
                address = _address(builder, x_t_, ir.Constant(_INDEX, c * lanes.count + part * width), vector_type)
                builder.store(builder.fmul(column, scale), address, align=lanes.bits // 8)
        return context.get_dummy_value()

    return types.void(x_t, x, _OFFSETS, types.intp, lanes), codegen


@intrinsic
def _block_out(typing_context, x, x_t, row_table, row_step, factor):
    """x[row i, c] = factor[i] x_t[c, i] for the columns of one block and every lane i."""
    lanes = LANES[x.dtype]

    def codegen(context, builder, sig, args):
        x_, x_t_, row_table_, row_step_, factor_ = args
        width, vector_type = _half(lanes)
        for part in range(2):
            scale = _half_of(builder, lanes, factor_, part)
            columns = []
            for c in range(width):
                address = _address(builder, x_t_, ir.Constant(_INDEX, c * lanes.count + part * width), vector_type)
                columns.append(builder.fmul(builder.load(address, align=lanes.bits // 8), scale))
            for i, row in enumerate(_emit_transpose(builder, columns)):
                address = _row_address(builder, lanes, x_, row_table_, row_step_, part * width + i)
                builder.store(row, address, align=lanes.bits // 8)
        return context.get_dummy_value()

    return types.void(x, x_t, _OFFSETS, types.intp, lanes), codegen


@device
def rows_to_lanes(x_t, x, row_table, row_step, column_step, columns, factor, spare):
    """x_t[c, i] = factor[i] x[row_table[i] row_step + c column_step]; `spare` is a vector of scratch."""
    lanes = width_of(x)
    c, width = 0, lanes // 2
    if column_step == 1:
        while c + width <= columns:
            _block_in(at(x_t, c * lanes), at(x, c), row_table, row_step, factor)
            c += width
    store(spare, 0, factor)
    for column in range(c, columns):
        for i in range(lanes):
            x_t[column * lanes + i] = x[row_table[i] * row_step + column * column_step] * spare[i]


@device
def lanes_to_rows(x, x_t, row_table, row_step, column_step, columns, factor, count, spare):
    """x[row_table[i] row_step + c column_step] = factor[i] x_t[c, i] for the first `count` lanes."""
    lanes = width_of(x)
    c, width = 0, lanes // 2
    if column_step == 1 and count == lanes:
        while c + width <= columns:
            _block_out(at(x, c), at(x_t, c * lanes), row_table, row_step, factor)
            c += width
    store(spare, 0, factor)
    for i in range(count):
        for column in range(c, columns):
            x[row_table[i] * row_step + column * column_step] = x_t[column * lanes + i] * spare[i]
