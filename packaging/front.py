"""Becomes the program: finds torch without importing it, chooses the build for this machine, and hands over.

The program is a native one in `aligner_gen/bin`; this file only says what is missing where something is.
"""

import importlib.util
import os
import sys

# Filled in by `cargo xtask dist`.
BUILT_FOR = "@TORCH@"
NEEDS_GLIBC = "@GLIBC@"

HERE = os.path.dirname(os.path.abspath(__file__))
# What the NVIDIA driver has while it is loaded; the last is Windows' under WSL.
DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")


def fail(sentence):
    sys.exit("error: " + sentence)


def numbers(version):
    return [int(part) for part in version.split(".")[:2]]


def check_system():
    if not sys.platform.startswith("linux"):
        fail(f"aligner-gen runs on Linux on x86-64, this is {sys.platform}")
    try:
        found = os.confstr("CS_GNU_LIBC_VERSION").split()[-1]
        is_old = numbers(found) < numbers(NEEDS_GLIBC)
    except (AttributeError, OSError, ValueError):
        fail(f"aligner-gen needs glibc {NEEDS_GLIBC} or newer, and this system's C library is another one")
    if is_old:
        fail(f"this system has glibc {found}; aligner-gen needs {NEEDS_GLIBC} or newer: use its container image")


def torch_folder():
    spec = importlib.util.find_spec("torch")
    folders = list(spec.submodule_search_locations or []) if spec else []
    install = f"pip install 'torch=={BUILT_FOR}.*'"
    if not folders:
        fail(f"torch is not installed for {sys.executable}: {install}")
    folder = folders[0]
    try:
        with open(os.path.join(folder, "version.py")) as file:
            lines = [line for line in file if line.startswith("__version__")]
        version = lines[0].split("=")[1].strip().strip("'\"")
    except (OSError, IndexError):
        fail(f"torch in {folder} is not whole, it has no version: {install}")
    if version.split(".")[:2] != BUILT_FOR.split("."):
        fail(f"torch {version} is in {folder}; this aligner-gen was built for torch {BUILT_FOR}: {install}")
    for name in ("libtorch_cpu.so", "libc10.so"):
        if not os.path.exists(os.path.join(folder, "lib", name)):
            fail(f"torch in {folder} is not whole, it has no lib/{name}: {install}")
    return folder


def choose(libraries):
    """The program for this machine, and why it is not that for GPUs."""
    for_gpus = os.path.join(HERE, "bin", "aligner-gen-cuda")
    why_cpu = None
    if not os.path.exists(for_gpus):
        why_cpu = "this package was made for the CPU"
    elif not any(os.path.exists(path) for path in DRIVER):
        why_cpu = "no NVIDIA driver is loaded"
    elif not os.path.exists(os.path.join(libraries, "libtorch_cuda.so")):
        why_cpu = "the installed torch is for the CPU"
    return (os.path.join(HERE, "bin", "aligner-gen-cpu") if why_cpu else for_gpus), why_cpu


def main():
    check_system()
    folder = torch_folder()
    libraries = os.path.join(folder, "lib")
    program, why_cpu = choose(libraries)
    environment = dict(os.environ)
    if why_cpu:
        environment["ALIGNER_GEN_WHY_CPU"] = why_cpu
    # The program looks for torch beside its own package; torch may lie in another folder of Python's path.
    beside = os.path.join(os.path.dirname(HERE), "torch")
    if os.path.realpath(folder) != os.path.realpath(beside):
        old = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = libraries + (":" + old if old else "")
    try:
        os.execve(program, [program, *sys.argv[1:]], environment)
    except OSError as error:
        fail(f"cannot start {program}: {error.strerror}; install aligner-gen again")
