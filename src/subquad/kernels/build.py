"""Kernels as native functions: compiled once by Numba, then kept as object code that llvmlite loads by itself.

A kernel takes pointers and numbers, allocates nothing and raises nothing, so its object code needs nothing from
Python. Loading it takes some 50 ms against the 0.6 s of importing Numba and warming its registries, and `ctypes` lets
go of the GIL while it runs.

The cache file is named after everything that shapes the code: the bytes of every module in this package, the versions
of Numba, llvmlite and Python, the processor and its features. An edit to any kernel therefore never meets old code.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from typing import Any

from subquad.kernels import cache

# one letter an argument: x pointer to elements as they are stored, c as they are computed with, i to int64,
# u to uint16; n int64, f float64
SIGNATURES = {
    "tiled": "xxxxcfiiiiiiucinn",
    "gathered": "xxxxcfiiiicinn",
    "tiled_wide": "xxxccfiiiiiiucinn",  # halves into an output that is none, for phases to come
    "gathered_wide": "xxxccfiiiicinn",
    "decode": "xxxccfiiiiiicinnnnnnn",
    "scores": "xxcfiiicnn",
    "tiled_backward": "xxxxcccccfiiiiiiucinnnn",
    "gathered_backward": "xxxxccccfiiiicinn",
    "convert": "xcnn",
    "modify": "cciinnni",
    "thin": "cciinnni",
    "peak": "cn",
    "read": "ccn",
    "triad": "cccfn",
}

_CTYPES: dict[str, Any] = {**dict.fromkeys("xciu", ctypes.c_void_p), "n": ctypes.c_int64, "f": ctypes.c_double}
_lock = threading.RLock()
if hasattr(
    os, "register_at_fork"
):  # a thread of the parent may hold the lock, and there is no such thread in the child
    os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.RLock()))
_loaded: dict[tuple[str, str], Any] = {}
_engines: list[Any] = []  # LLVM frees a kernel's code with the engine that loaded it


def load(name: str, dtype: str) -> Any:
    """The kernel `name` for element type `dtype` as a `ctypes` function."""
    kernel = _loaded.get((name, dtype))
    if kernel is None:
        with _lock:
            kernel = _loaded.get((name, dtype))
            if kernel is None:
                kernel = _loaded[name, dtype] = _bring_in(name, dtype)
    return kernel


def _bring_in(name: str, dtype: str) -> Any:
    symbol = f"subquad_{name}_{dtype}"
    kept = f"{symbol}-{source_digest()}.o"
    machine_code = cache.read(kept)
    if machine_code is None:
        machine_code = _compile(name, dtype, symbol)
        cache.write(kept, machine_code)
    address = _link(machine_code, symbol)
    return ctypes.CFUNCTYPE(None, *(_CTYPES[letter] for letter in SIGNATURES[name]))(address)


@functools.cache
def _target() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, reloc="pic", codemodel="default", jit=True
    )


@functools.cache
def widens(dtype: str) -> bool:
    """Whether kernels can read this half precision in place: float16 takes an instruction of the processor."""
    import llvmlite.binding as llvm

    return dtype == "bfloat16" or bool(llvm.get_host_cpu_features().get("f16c")) or "aarch64" in _target().triple


def _compile(name: str, dtype: str, symbol: str) -> bytes:
    return bytes(_target().emit_object(_module(name, dtype, symbol)))


def _module(name: str, dtype: str, symbol: str) -> Any:
    """A kernel as one optimised LLVM module whose only way in is `symbol`."""
    import llvmlite.binding as llvm

    native_name, text = _llvm_text(name, dtype)
    module = llvm.parse_assembly(text.replace(native_name, symbol))
    # Numba compiles each function for itself, with a way to raise. Seen as one program none of them raises: the
    # optimiser drops those ways, and with them every symbol that only a running Numba could supply.
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    for level in (1, 3):  # the second finds what the first made constant: that nothing raises
        passes = llvm.create_pass_builder(_target(), llvm.create_pipeline_tuning_options(speed_level=level))
        passes.getModulePassManager().run(module, passes)
    missing = [f.name for f in module.functions if f.is_declaration and not f.name.startswith(("llvm.", "mem"))]
    if missing:  # calling one would crash: only a running Numba has them
        raise RuntimeError(f"the kernel {symbol!r} was compiled with ways to raise left in it: {', '.join(missing)}")
    return module


def _llvm_text(name: str, dtype: str) -> tuple[str, str]:
    """What Numba makes of a kernel, and its symbol there; from a process of its own, so Numba stays out of this one.

    There it optimises nothing (`_module` does, over the whole), which takes a third off; this process's Numba and its
    settings are neither used nor changed, and no setting of the environment or of a configuration file in the working
    directory shapes the code. Where no process can be started, Numba compiles here.
    """
    import subprocess

    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment = {**kept, "NUMBA_OPT": "0", "PYTHONPATH": paths}
    command = [sys.executable or "python", "-P", "-m", "subquad.kernels.entry", name, dtype]
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=os.path.dirname(os.path.abspath(__file__)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        symbol, text = done.stdout.decode().split("\n", 1)
    except (OSError, subprocess.SubprocessError, ValueError):
        from subquad.kernels.entry import compile_to_ir

        symbol, text = compile_to_ir(name, dtype)
    return symbol, text


def _link(machine_code: bytes, symbol: str) -> int:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    _engines.append(engine)
    address = engine.get_function_address(symbol)
    if not address:
        raise RuntimeError(f"compiled kernel lacks its symbol {symbol!r}; run: subquad cache --clear")
    return int(address)


@functools.cache
def source_digest() -> str:
    """Digest of everything that shapes the machine code."""
    import hashlib
    from importlib.metadata import version  # 20 ms, half of them for e-mail headers

    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    facts = [version("numba"), version("llvmlite"), sys.version, llvm.get_host_cpu_name()]
    facts += [llvm.get_host_cpu_features().flatten(), llvm.get_default_triple(), os.environ.get("NUMBA_OPT", "")]
    digest.update("\0".join(facts).encode())
    folder = os.path.dirname(__file__)
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(name.encode() + b"\0" + file.read())
    return digest.hexdigest()[:24]
