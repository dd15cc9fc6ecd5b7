# SPDX-License-Identifier: Apache-2.0
"""What the installed wheel promises. From a checkout on PYTHONPATH there is no wheel to ask."""
from __future__ import annotations

import ast
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

try:
    WHEEL = importlib.metadata.distribution("weir")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("weir is not installed as a wheel", allow_module_level=True)

import weir

PACKAGE = pathlib.Path(weir.__file__).parent
HEAVY = ("numpy", "ml_dtypes", "torch", "vllm", "sglang")


def run_bare(code: str, tmp_path: pathlib.Path) -> str:
    """What `code` prints in an interpreter of its own, with no variable of Weir, UCX or Python."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("WEIR_", "UCX_", "LD_", "PYTHON"))}
    done = subprocess.run([sys.executable, "-c", code], env=kept, cwd=tmp_path, text=True,
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_wheel_fits_every_python_of_the_platform() -> None:
    lines = (WHEEL.read_text("WHEEL") or "").splitlines()
    tags = [line.split(": ")[1] for line in lines if line.startswith("Tag: ")]
    assert tags and all(tag.startswith("py3-none-") for tag in tags), tags
    assert not any(tag.endswith("-any") for tag in tags), tags
    assert "Root-Is-Purelib: false" in lines
    assert WHEEL.metadata["Requires-Python"] == ">=3.9"


def test_the_library_is_inside_once_and_found_without_variables(tmp_path: pathlib.Path) -> None:
    found = run_bare("import weir; print(weir.library_path())", tmp_path)
    assert pathlib.Path(found).resolve() == (PACKAGE / "lib" / "libweir.so").resolve()
    names = sorted(path.name for path in (PACKAGE / "lib").glob("libweir*"))
    assert names in (["libweir.so"], ["libweir.so", "libweir_cuda.so"]), names


def test_what_needs_a_gpu_is_found_beside_it(tmp_path: pathlib.Path) -> None:
    if not (PACKAGE / "lib" / "libweir_cuda.so").exists():
        pytest.skip("the wheel was built without nvcc")
    code = ("import ctypes, weir.library; n = ctypes.c_uint(); "
            "weir.library.library().weir_cuda_devices(ctypes.byref(n)); "
            "print([line for line in open('/proc/self/maps') if 'libweir_cuda' in line][0])")
    assert run_bare(code, tmp_path).endswith(str(PACKAGE / "lib" / "libweir_cuda.so"))


def test_the_library_converts_without_variables(tmp_path: pathlib.Path) -> None:
    code = ("import weir; out = weir.convert('bf16_cast', "
            "weir.tensor(bytearray(64), dtype='F32', shape=(4, 4))); "
            "print([t.shape for t in out.values()])")
    assert "(4, 4)" in run_bare(code, tmp_path)


def test_two_processes_refit_by_the_ucx_that_is_inside_or_the_machines(tmp_path: pathlib.Path) -> None:
    program = pathlib.Path(__file__).with_name("two_processes.py").read_text(encoding="utf-8")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    code = "import subprocess, sys; subprocess.run([sys.executable, 'program.py'], check=True)"
    version, equal, *libraries = run_bare(code, tmp_path).split()
    assert (version, equal) == ("1", "True")
    carried = [path for path in libraries if path.startswith(str(PACKAGE))]
    assert carried in ([], libraries), libraries
    whole = any((PACKAGE / "lib").glob("libucp-*"))
    assert bool(carried) == whole
    assert not whole or any("/lib/ucx/" in path for path in carried), libraries


def test_the_version_is_the_librarys() -> None:
    assert weir.version() == WHEEL.version


def test_it_is_typed_and_carries_its_licence() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert any(file.name == "LICENSE" for file in WHEEL.files or ())


def test_importing_it_imports_no_framework(tmp_path: pathlib.Path) -> None:
    code = f"import sys, weir; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    assert run_bare(code, tmp_path) == "[]"


def test_vllm_finds_its_plugin_without_being_imported(tmp_path: pathlib.Path) -> None:
    plugins = {entry.name: entry.value for entry in WHEEL.entry_points
               if entry.group == "vllm.general_plugins"}
    assert plugins == {"weir": "weir.vllm:register"}
    code = "import sys, weir.vllm; print(callable(weir.vllm.register), 'vllm' in sys.modules)"
    assert run_bare(code, tmp_path) == "True False"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_the_oldest_python_that_it_promises_parses(path: pathlib.Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))
