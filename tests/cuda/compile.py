#!/usr/bin/env python3
"""Compiles the CUDA C++ kernels as CubeCL does at run time, with NVRTC, and reports registers and spills. No GPU needed.

    python3 -m pip install 'nvidia-cuda-nvrtc==13.0.*'
    python3 tests/cuda/compile.py [folder, default crates/core/src/ops/cube/cuda] [--head-dim 64 ...] [--arch sm_90a ...]

Every .cu file of the folder, after the files that its first line names ("// After a.cuh, b.cuh."), is compiled to a CUBIN for each
architecture and, where it names HEAD_DIM or GEMM, each value of it that the host asks for. Fails on an error, on a warning, and on more than --spill bytes of spilled registers in a kernel. Registers and spills
come from the assembler's report in NVRTC's log (--ptxas-options=-v).

NVRTC is the one of pip's package, in the Python that runs this, or the library that --nvrtc names. It has to be 13.0: a later one
writes PTX that the oldest supported driver, 580, does not load.
"""

import argparse
import ctypes
import pathlib
import re
import sys
import time

HEAD_DIMS = tuple(range(16, 129, 16))
GEMMS = tuple(range(16)) # from 8 on for sm_90a alone
ARCHS = ("sm_80", "sm_90a")
INSTALL = f"{sys.executable} -m pip install"


def find_nvrtc():
    # CUDA 13's packages share the folder nvidia/cu13, earlier ones have a folder each.
    found = {file for path in sys.path for file in pathlib.Path(path).glob("nvidia/*/lib/libnvrtc.so.*")}
    if not found:
        sys.exit(f"compile.py: {sys.executable} has no NVRTC (Linux): {INSTALL} 'nvidia-cuda-nvrtc==13.0.*'")
    return max(found, key=lambda file: (int(file.name.split(".")[2]), str(file)))


class Nvrtc:
    def __init__(self, library):
        self.root = library.parent.parent
        try:
            for builtins in library.parent.glob("libnvrtc-builtins.so*"): # found by name once it is loaded
                ctypes.CDLL(str(builtins))
            self.lib = ctypes.CDLL(str(library))
        except OSError as error:
            sys.exit(f"compile.py: {library} cannot be loaded: {error}; {INSTALL} --force-reinstall 'nvidia-cuda-nvrtc==13.0.*'")
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def check(self, code):
        if code:
            sys.exit(f"compile.py: NVRTC: {self.lib.nvrtcGetErrorString(code).decode()}")

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return f"{major.value}.{minor.value}"

    def bytes_of(self, program, size, get):
        n = ctypes.c_size_t()
        self.check(size(program, ctypes.byref(n)))
        data = ctypes.create_string_buffer(n.value)
        self.check(get(program, data))
        return data.raw

    def compile(self, source, name, options):
        """(succeeded, log, cubin)"""
        program = ctypes.c_void_p()
        self.check(self.lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
        array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        code = self.lib.nvrtcCompileProgram(program, len(options), array)
        log = self.bytes_of(program, self.lib.nvrtcGetProgramLogSize, self.lib.nvrtcGetProgramLog)
        cubin = b"" if code else self.bytes_of(program, self.lib.nvrtcGetCUBINSize, self.lib.nvrtcGetCUBIN)
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return code == 0, log.rstrip(b"\0").decode(), cubin


def kernels(log):
    """Per kernel: registers, spill stores, spill loads, stack bytes."""
    found = {}
    for block in re.split(r"(?=ptxas info\s*: Compiling entry function)", log)[1:]:
        name = re.search(r"entry function '(\w+)'", block).group(1)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        if stack and registers:
            found[name] = (int(registers.group(1)), int(stack.group(2)), int(stack.group(3)), int(stack.group(1)))
    return found


def whole(file):
    """The text that the host compiles."""
    text = file.read_text()
    before = re.match(r"// After (.*)\.\n", text)
    names = before.group(1).split(", ") if before else []
    parts = [file.with_name(name) for name in names] + [file]
    return "".join(f'#line 1 "{part.name}"\n{part.read_text()}' for part in parts)


def main():
    here = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=here / "crates/core/src/ops/cube/cuda", type=pathlib.Path)
    parser.add_argument("--head-dim", nargs="+", type=int, default=HEAD_DIMS)
    parser.add_argument("--arch", nargs="+", default=ARCHS)
    parser.add_argument("--nvrtc", type=pathlib.Path, help="libnvrtc.so to load (default: of pip's package)")
    parser.add_argument("--spill", type=int, default=64, help="bytes of spill stores allowed in a kernel")
    parser.add_argument("--log", action="store_true", help="print the whole log")
    parser.add_argument("--save", type=pathlib.Path, help="folder for the CUBIN files")
    args = parser.parse_args()

    files = sorted(args.folder.rglob("*.cu"))
    if not files:
        sys.exit(f"compile.py: no .cu file under {args.folder}")
    nvrtc = Nvrtc(args.nvrtc or find_nvrtc())
    print(f"NVRTC {nvrtc.version()}")
    if nvrtc.version() != "13.0" and not args.nvrtc:
        sys.exit(f"compile.py: expected NVRTC 13.0: {INSTALL} 'nvidia-cuda-nvrtc==13.0.*'")
    failures = 0
    for file in files:
        text = whole(file)
        for arch in args.arch:
            macro = next((name for name in ("HEAD_DIM", "GEMM") if f"define {name}" in text), None)
            values = {"HEAD_DIM": args.head_dim, "GEMM": [g for g in GEMMS if g < 8 or arch.startswith("sm_90")]}.get(macro, (None,))
            for value in values:
                # CubeCL passes no macro, so the caller writes it above the source.
                source = f"#define {macro} {value}\n" + text if macro else text
                headers = [nvrtc.root / "include", nvrtc.root / "include/cccl"]
                options = [f"--gpu-architecture={arch}", *(f"--include-path={h}" for h in headers), "-lineinfo",
                           "--ptxas-options=-v"]
                start = time.time()
                good, log, cubin = nvrtc.compile(source, file.name, options)
                seconds = time.time() - start
                title = f"{file.name} {arch}" + (f" {macro}={value}" if macro else "")
                warned = bool(re.search(r"\bwarning\b", log, re.I))
                print(f"{title}: {'ok' if good else 'ERROR'}, {len(cubin)} bytes, {seconds:.1f} s")
                if args.log or not good or warned:
                    print(log)
                if re.search(r"could not open source file|cannot open source file", log):
                    print(f"    CUDA's headers: {INSTALL} 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'")
                failures += not good or warned
                report = kernels(log)
                for name, (registers, stores, loads, stack) in report.items():
                    over = stores > args.spill
                    failures += over
                    print(f"    {name:24} {registers:3} registers, spills {stores} B stored {loads} B loaded, stack {stack} B"
                          + (" TOO MUCH" if over else ""))
                if good and not report:
                    print("    no report of registers in the log")
                    failures += 1
                if good and args.save:
                    args.save.mkdir(parents=True, exist_ok=True)
                    (args.save / f"{title.replace(' ', '-')}.cubin").write_bytes(cubin)
    sys.exit(f"compile.py: {failures} failed" if failures else 0)


if __name__ == "__main__":
    main()
