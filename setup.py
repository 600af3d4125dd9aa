# SPDX-License-Identifier: Apache-2.0
"""Builds `ardiff_engine._C` with CMake and Ninja. Everything else about the package is in pyproject.toml.

ARDIFF_CUDA=auto|1|0        build the CUDA kernels: when nvcc is found (default), always, never
ARDIFF_REQUIRE_NATIVE=1     fail where the native kernels cannot be built; by default the package is then
                            installed without them and runs on its PyTorch reference operators
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class PackageWithSources(build_py):
    """Puts the sources of the CUDA kernels beside ardiff_engine/kernels/nvrtc.py, which compiles them where
    nvcc was missing. An editable install reads them from the source tree."""

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
        try:
            self._cmake(Path(self.get_ext_fullpath(ext.name)).resolve())
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            if os.environ.get("ARDIFF_REQUIRE_NATIVE") == "1" or os.environ.get("ARDIFF_CUDA") == "1":
                raise
            print(
                f"\nardiff-engine: the native kernels were not built ({error}).\n"
                "ardiff-engine: installing without them; operators run on their slower PyTorch reference.\n"
                "ardiff-engine: to get them, install a C++17 compiler and cmake >= 3.25 and install again\n"
                "ardiff-engine: (ARDIFF_REQUIRE_NATIVE=1 makes this an error).\n",
                file=sys.stderr,
            )

    def _cmake(self, target: Path) -> None:
        import pybind11

        if shutil.which("cmake") is None:
            raise FileNotFoundError("cmake is not on the PATH")
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        generator = ["-GNinja"] if shutil.which("ninja") else []
        configure = [
            "cmake", *generator, f"-S{ROOT}", f"-B{build}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DARDIFF_MODULE_FILE={target.name}",
            f"-DARDIFF_CUDA={os.environ.get('ARDIFF_CUDA', 'auto')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        # A stale cache of another interpreter, generator or build environment only fails: start afresh once.
        if subprocess.run(configure).returncode != 0:
            shutil.rmtree(build)
            subprocess.run(configure, check=True)
        jobs = [f"-j{self.parallel}"] if self.parallel else ["--parallel"]
        subprocess.run(["cmake", "--build", str(build), *jobs], check=True)


setup(
    ext_modules=[Extension("ardiff_engine._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild, "build_py": PackageWithSources},
)
