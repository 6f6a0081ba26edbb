"""A process with a kernel on the GPU that never ends, with nothing but the driver and NVRTC, by ctypes.

Prints `ready` once the kernel runs, and then waits for it. Exit status 77: no GPU, no driver or no NVRTC, and why.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import glob
import sys
from typing import NoReturn

SOURCE = b"""
extern "C" __global__ void spins_for_ever(volatile int *stop, int *beats) {
    while (*stop == 0) { atomicAdd(beats, 1); }
}
"""
_PLACES = (
    "/usr/local/cuda*/lib64/libnvrtc.so*",
    "/usr/local/cuda*/targets/*/lib/libnvrtc.so*",
    "/usr/lib/*/libnvrtc.so*",
    *(f"{folder}/nvidia/*/lib/libnvrtc.so*" for folder in sys.path if folder),
)


def absent(why: str) -> NoReturn:
    print(why, flush=True)
    sys.exit(77)


def nvrtc() -> ctypes.CDLL:
    names = [ctypes.util.find_library("nvrtc") or "", *(path for place in _PLACES for path in sorted(glob.glob(place)))]
    for name in names:
        if name and "builtins" not in name and ".alt." not in name:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
    absent("no NVRTC library")


def compiled(architecture: str) -> bytes:
    """The kernel's machine code or PTX for a GPU such as `sm_90`."""
    library = nvrtc()
    program = ctypes.c_void_p()
    check(library.nvrtcCreateProgram(ctypes.byref(program), SOURCE, b"spin.cu", 0, None, None), "nvrtcCreateProgram")
    options = (ctypes.c_char_p * 2)(f"--gpu-architecture={architecture}".encode(), b"-lineinfo")
    check(library.nvrtcCompileProgram(program, 2, options), "nvrtcCompileProgram")
    size = ctypes.c_size_t()
    check(library.nvrtcGetPTXSize(program, ctypes.byref(size)), "nvrtcGetPTXSize")
    text = ctypes.create_string_buffer(size.value)
    check(library.nvrtcGetPTX(program, text), "nvrtcGetPTX")
    return text.raw


def check(status: int, call: str) -> None:
    if status:
        raise SystemExit(f"{call} failed with {status}")


def main() -> None:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        absent("no CUDA driver")
    if cuda.cuInit(0):
        absent("the CUDA driver finds no device")
    device = ctypes.c_int()
    check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    major, minor = ctypes.c_int(), ctypes.c_int()
    check(cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device), "cuDeviceGetAttribute")
    check(cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device), "cuDeviceGetAttribute")
    context = ctypes.c_void_p()
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    code = compiled(f"compute_{major.value}{minor.value}")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cuModuleLoadData(ctypes.byref(module), code), "cuModuleLoadData")
    check(cuda.cuModuleGetFunction(ctypes.byref(function), module, b"spins_for_ever"), "cuModuleGetFunction")
    memory = ctypes.c_uint64()
    check(cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(8)), "cuMemAlloc")
    check(cuda.cuMemsetD8_v2(memory, ctypes.c_ubyte(0), ctypes.c_size_t(8)), "cuMemsetD8")
    stop, beats = ctypes.c_uint64(memory.value), ctypes.c_uint64(memory.value + 4)
    pointers = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in (stop, beats)]
    parameters = (ctypes.c_void_p * 2)(*pointers)
    check(cuda.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, None, parameters, None), "cuLaunchKernel")
    print("ready", flush=True)
    status = cuda.cuCtxSynchronize()  # as a rank that waits for its GPU
    print(f"the kernel ended with {status}", flush=True)


if __name__ == "__main__":
    main()
