"""The kernels' outer faces: C functions over pointers, one per element type. Numba is imported here and below alone."""

import gc
import sys

from numba import cfunc, types

from subquad.kernels import memory, simd
from subquad.kernels.backward import backward_tiled
from subquad.kernels.build import SIGNATURES
from subquad.kernels.convert import convert
from subquad.kernels.decode import forward_decode
from subquad.kernels.gathered import forward_gathered, pair_scores
from subquad.kernels.gathered_backward import backward_gathered
from subquad.kernels.jit import OPTIONS
from subquad.kernels.modifiers import modify, thin
from subquad.kernels.streams import read, triad
from subquad.kernels.tiled import forward_tiled


def peak(x, rounds):
    """Nothing but multiply-adds on registers: ten independent chains of AVX2 vectors."""
    a = b = c = d = e = memory.load(x, 0)
    s = memory.load(x, simd.width_of(x))
    for _ in range(rounds):
        a, b, c = simd.fma(a, s, s), simd.fma(b, s, s), simd.fma(c, s, s)
        d, e = simd.fma(d, s, s), simd.fma(e, s, s)
    memory.store(x, 0, a + b + c + d + e)


FUNCTIONS = {
    "tiled": forward_tiled,
    "gathered": forward_gathered,
    "tiled_wide": forward_tiled,
    "gathered_wide": forward_gathered,
    "decode": forward_decode,
    "scores": pair_scores,
    "tiled_backward": backward_tiled,
    "gathered_backward": backward_gathered,
    "modify": modify,
    "convert": convert,
    "thin": thin,
    "peak": peak,
    "read": read,
    "triad": triad,
}
# the type of elements as they are stored, and as they are computed with
ELEMENTS = {
    "float32": (types.float32, types.float32),
    "float64": (types.float64, types.float64),
    "float16": (simd.FLOAT16, types.float32),
    "bfloat16": (simd.BFLOAT16, types.float32),
}


def compile_to_ir(name: str, dtype: str) -> tuple[str, str]:
    """The symbol of a kernel, and its LLVM text."""
    stored, computed = ELEMENTS[dtype]
    kinds = {
        "x": types.CPointer(stored),
        "c": types.CPointer(computed),
        "i": types.CPointer(types.int64),
        "u": types.CPointer(types.uint16),
        "n": types.int64,
        "f": types.float64,
    }
    signature = types.void(*(kinds[letter] for letter in SIGNATURES[name]))
    compiled = cfunc(signature, **OPTIONS)(FUNCTIONS[name])
    return compiled.native_name, compiled.inspect_llvm()


if __name__ == "__main__":
    gc.disable()  # a short life: collecting takes a tenth of it
    print(*compile_to_ir(*sys.argv[1:3]), sep="\n")
