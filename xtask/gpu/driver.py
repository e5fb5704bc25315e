"""What the scripts that time kernels share: the sources in crates/cuda-kernels/kernels compiled with NVRTC and launched by the driver.

Needs torch with CUDA and a GPU of compute capability 9.0.
"""

import ctypes
import glob
import os

import torch

KERNELS = os.path.join(os.path.dirname(__file__), "../../crates/cuda-kernels/kernels")
# Numbers of CUfunction_attribute and CUlaunchAttributeID.
MAX_DYNAMIC_SHARED, PROGRAMMATIC_STREAM_SERIALIZATION = 8, 6

cuda = ctypes.CDLL("libcuda.so.1")


def check(code, what):
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{what}: {text.value}")


def source(name):
    with open(f"{KERNELS}/{name}") as file:
        return file.read()


def edited(text, *changes):
    """With each first text, which stands there once, replaced by the second."""
    for before, after in changes:
        if text.count(before) != 1:
            raise RuntimeError(f"{before!r} stands {text.count(before)} times in a kernel's source, and should once")
        text = text.replace(before, after)
    return text


def compiled(compiler, text, defines, headers=None):
    """The program for compute capability 9.0. `headers`: texts that stand in for those of the folder."""
    texts = {os.path.basename(path): source(os.path.basename(path)) for path in glob.glob(f"{KERNELS}/*.cuh")} | (headers or {})
    array = lambda strings: (ctypes.c_char_p * len(strings))(*[string.encode() for string in strings])
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    compiler.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", len(texts), array(texts.values()), array(texts))
    options = ["--gpu-architecture=sm_90a", "--std=c++17"] + [f"-D{key}={value}" for key, value in defines.items()]
    if compiler.nvrtcCompileProgram(program, len(options), array(options)):
        compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        compiler.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.value.decode())
    compiler.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetCUBIN(program, cubin)
    return cubin


def nvrtc():
    root = torch.__path__[0]
    found = [path for folder in (f"{root}/lib", f"{root}/../nvidia/*/lib") for path in glob.glob(f"{folder}/libnvrtc.so.*")]
    return ctypes.CDLL(found[0])


def kernel(compiler, text, name, defines, headers=None, shared=0):
    """A function of the program, which may have so many bytes of shared memory."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cuModuleLoadData(ctypes.byref(module), compiled(compiler, text, defines, headers)), "cuModuleLoadData")
    check(cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()), "cuModuleGetFunction")
    check(cuda.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared), "cuFuncSetAttribute")
    return function


class Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_byte * 64)]


class Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("num_attributes", ctypes.c_uint),
    ]


def aligned(size):
    """Memory at a multiple of 64 bytes, as tensor maps need it: what keeps it, and its address."""
    kept = ctypes.create_string_buffer(size + 64)
    return kept, (ctypes.addressof(kept) + 63) // 64 * 64


def launch(function, blocks, threads, shared, args, overlaps=False):
    """On torch's current stream. `args`: the bytes of each parameter."""
    memory = [aligned(len(arg)) for arg in args]
    for (_, address), arg in zip(memory, args):
        ctypes.memmove(address, arg, len(arg))
    pointers = (ctypes.c_void_p * len(args))(*[address for _, address in memory])
    attribute = Attribute(PROGRAMMATIC_STREAM_SERIALIZATION)
    attribute.value[0] = 1
    config = Config((blocks, 1, 1), (threads, 1, 1), shared, torch.cuda.current_stream().cuda_stream, ctypes.addressof(attribute), int(overlaps))
    check(cuda.cuLaunchKernelEx(ctypes.byref(config), function, pointers, None), "cuLaunchKernelEx")


def captured(stream, enqueue):
    with torch.cuda.stream(stream):
        enqueue()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        enqueue()
        graph.capture_end()
    return graph


def micros(stream, enqueue):
    """Of what is enqueued, replayed as a graph: the median of five."""
    graph = captured(stream, enqueue)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    with torch.cuda.stream(stream):
        graph.replay()
        for _ in range(5):
            start.record()
            graph.replay()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 500)
    return sorted(times)[2]
