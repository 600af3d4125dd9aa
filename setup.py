# SPDX-License-Identifier: Apache-2.0
"""Builds `ardiff_engine._C` with CMake and Ninja. Everything else about the package is in pyproject.toml.

ARDIFF_CUDA=auto|1|0        build the CUDA kernels: where nvcc and a GPU are found (default), always, never
ARDIFF_REQUIRE_NATIVE=1     fail where the native kernels cannot be built; by default the package is then
                            installed without them and runs on its PyTorch reference operators
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Seconds of one core, for the line that says how long the build takes: by benchmarks/worklog/build.md.
CPP_SECONDS, CUDA_SECONDS = 75.0, 80.0


class PackageWithSources(build_py):
    """Puts the sources of the CUDA kernels beside ardiff_engine/kernels/nvrtc.py, which compiles them where
    the module was built without them. An editable install reads them from the source tree."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "ardiff_engine" / "kernels" / "csrc"
        shutil.rmtree(
            target, ignore_errors=True
        )  # of an earlier build: its files must not outlive their removal
        for folder in ("include", "cuda"):
            shutil.copytree(ROOT / "csrc" / folder, target / folder)


class CMakeBuild(build_ext):
    """One extension, built by CMake straight to the place where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        cuda = os.environ.get("ARDIFF_CUDA", "auto")
        if cuda not in ("auto", "0", "1"):
            sys.exit(f"ARDIFF_CUDA is {cuda!r}. Set it to auto, 1 or 0, or unset it.")
        try:
            self._cmake(Path(self.get_ext_fullpath(ext.name)).resolve(), cuda)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            if os.environ.get("ARDIFF_REQUIRE_NATIVE") == "1" or cuda == "1":
                raise
            failed = Path(error.cmd[0]).name if isinstance(error, subprocess.CalledProcessError) else None
            say(f"the native kernels were NOT built: {f'{failed} failed' if failed else error}")
            say("the package is installed without them: its operators run on their slower PyTorch reference.")
            say("To get them, install a C++17 compiler (Debian, Ubuntu: apt install g++) and install again;")
            say("pip install -v shows what failed, ARDIFF_REQUIRE_NATIVE=1 makes it an error.")

    def _cmake(self, target: Path, cuda: str) -> None:
        import pybind11

        # Not self.build_temp: an editable install has a new one every time, and would compile all files anew.
        build = ROOT / "build" / "cmake" / f"{sys.implementation.cache_tag}{'-debug' if self.debug else ''}"
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        cmake, ninja = tool("cmake"), tool("ninja")
        if cmake is None:
            raise FileNotFoundError("cmake is not on the PATH")
        generator = ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure = [
            cmake, *generator, f"-S{ROOT}", f"-B{build}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DARDIFF_MODULE_FILE={target.name}",
            f"-DARDIFF_CUDA={cuda}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        began = time.monotonic()
        # A stale cache of another interpreter, generator or build environment only fails: start afresh once.
        if subprocess.run(configure).returncode != 0:
            shutil.rmtree(build)
            subprocess.run(configure, check=True)
        jobs = self.parallel or len(os.sched_getaffinity(0))
        say(what_is_built(build, jobs))
        subprocess.run([cmake, "--build", str(build), f"-j{jobs}"], check=True)
        say(f"{target.name} is built, in {time.monotonic() - began:.0f} s")


def tool(name: str) -> str | None:
    """Beside this interpreter, where pip puts it, or else on the PATH: the same one with and without pip."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def what_is_built(build: Path, jobs: int) -> str:
    commands = json.loads((build / "compile_commands.json").read_text())
    cuda = sum(command["file"].endswith(".cu") for command in commands)
    files = f"{len(commands) - cuda} files of C++"
    if cuda:
        files += f" and {cuda} of CUDA (ARDIFF_CUDA=0 leaves them out)"
    seconds = (CPP_SECONDS + (CUDA_SECONDS if cuda else 0)) / jobs
    return f"compiling {files} with {jobs} processes, from scratch about {seconds:.0f} s on idle cores"


def say(line: str) -> None:
    """To standard error, and to the terminal where standard error is none: pip hides what a build prints."""
    print(f"ardiff-engine: {line}", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        return
    try:
        with open("/dev/tty", "w") as terminal:
            print(f"\nardiff-engine: {line}", file=terminal)
    except OSError:
        pass  # no terminal: a job in the background, a container


setup(
    ext_modules=[Extension("ardiff_engine._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild, "build_py": PackageWithSources},
)
