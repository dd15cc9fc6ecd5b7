# SPDX-License-Identifier: Apache-2.0
"""That weir.abi and weir.prototypes are what the headers say: a C program, generated from abi.py,
includes them and prints every size, offset and number; initialisers by position find fields that
abi.py lacks; prototypes are read from the headers' text. WEIR_SOURCE may name another folder that
holds include/."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest

from weir import abi, dtypes, errors, prototypes
from weir import library as library_module

SOURCE = pathlib.Path(os.environ.get("WEIR_SOURCE", pathlib.Path(__file__).parents[2])) / "include"
HEADERS = sorted(path.name for path in (SOURCE / "weir").glob("*.h"))
COMPILER = shutil.which(os.environ.get("CC", "cc"))
PREFIXES = (
    "WEIR_LOG_",
    "WEIR_DELIVERY_",
    "WEIR_WIRE_",
    "WEIR_INSTALL_",
    "WEIR_REPLICA_",
    "WEIR_NAMING_",
    "WEIR_CUT_",
    "WEIR_DERIVED_",
)


def numbers() -> Dict[str, int]:
    """Every number of abi, dtypes and errors, under its C name."""
    found = {
        name: value
        for name, value in vars(abi).items()
        if name.startswith("WEIR_") and isinstance(value, int)
    }
    found.update({f"WEIR_{status.name}": int(status) for status in errors.Status})
    found.update({f"WEIR_{dtype.name}": int(dtype) for dtype in dtypes.DType})
    found.update({f"WEIR_STOP_{stop.upper()}": i for i, stop in enumerate(abi.STOPS)})
    return found


def is_aggregate(kind: Any) -> bool:
    return issubclass(kind, (ctypes.Structure, ctypes.Array))


def by_position(struct: Any) -> str:
    """{0, {0}, ...}: one initialiser for each field that abi.py knows, in its order."""
    return ", ".join("{0}" if is_aggregate(kind) else "0" for _, kind in struct._fields_)


def program() -> Iterator[str]:
    yield "#include <stdio.h>"
    yield from (f'#include "weir/{header}"' for header in HEADERS)
    for struct in abi.STRUCTS:
        name = struct.__name__
        yield f"const {name} all_of_{name} = {{ {by_position(struct)} }};"
    yield "int main(void)\n{"
    for struct in abi.STRUCTS:
        name = struct.__name__
        yield f'printf("{name} %zu\\n", sizeof({name}));'
        for field, _ in struct._fields_:
            yield (
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), '
                f"sizeof((({name} *)0)->{field}));"
            )
    for name in numbers():
        yield f'printf("{name} %lld\\n", (long long)({name}));'
    for name in ("WEIR_VERSION", "WEIR_MESH_EXPLICIT", "WEIR_LAYOUT_CHECKPOINT"):
        yield f'printf("{name} %s\\n", {name});'
    yield "return 0;\n}"


def compile_and_run(text: str, folder: pathlib.Path) -> str:
    source, binary = folder / "mirror.c", folder / "mirror"
    source.write_text(text, encoding="utf-8")
    assert COMPILER is not None, "these tests need a C compiler"
    subprocess.run(
        [
            COMPILER,
            "-std=c11",
            "-Werror",
            "-Wmissing-field-initializers",
            "-Wno-unused-const-variable",
            f"-I{SOURCE}",
            str(source),
            "-o",
            str(binary),
        ],
        check=True,
        timeout=60,
    )
    return subprocess.run(
        [str(binary)], check=True, timeout=60, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def headers_say(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Tuple[str, ...]]:
    lines = compile_and_run("\n".join(program()), tmp_path_factory.mktemp("abi")).splitlines()
    return {line.split()[0]: tuple(line.split()[1:]) for line in lines}


def test_every_struct_has_the_headers_size_and_offsets(
    headers_say: Dict[str, Tuple[str, ...]],
) -> None:
    for struct in abi.STRUCTS:
        name = struct.__name__
        for field, _ in struct._fields_:
            mine = getattr(struct, field)
            assert headers_say[f"{name}.{field}"] == (str(mine.offset), str(mine.size)), field
        assert headers_say[name] == (str(ctypes.sizeof(struct)),), name


def test_every_number_is_the_headers(headers_say: Dict[str, Tuple[str, ...]]) -> None:
    for name, value in numbers().items():
        assert headers_say[name] == (str(ctypes.c_longlong(value).value),), name


def test_texts_and_the_version_are_the_headers(headers_say: Dict[str, Tuple[str, ...]]) -> None:
    assert headers_say["WEIR_VERSION"] == (library_module.__version__,)
    assert headers_say["WEIR_MESH_EXPLICIT"] == (abi.WEIR_MESH_EXPLICIT,)
    assert headers_say["WEIR_LAYOUT_CHECKPOINT"] == (abi.WEIR_LAYOUT_CHECKPOINT,)


def test_a_field_that_hides_in_padding_is_found(tmp_path: pathlib.Path) -> None:
    """The initialisers do find what no size tells: a bool behind a bool."""
    text = (
        "#include <stdbool.h>\ntypedef struct { int a; bool b; bool hidden; } grown;\n"
        "const grown all = { 0, 0 };\nint main(void) { return 0; }\n"
    )
    with pytest.raises(subprocess.CalledProcessError):
        compile_and_run(text, tmp_path)


# ---- what the headers' text says -------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def text_of_headers() -> str:
    text = "\n".join((SOURCE / "weir" / header).read_text(encoding="utf-8") for header in HEADERS)
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)


def enumerators_in_headers() -> Set[str]:
    text = text_of_headers()
    found = set(re.findall(r"\b(WEIR_[A-Z0-9_]+)\s*=\s*-?\d+", text))
    for prefix, which in (("WEIR_", "STATUS"), ("WEIR_", "DTYPE"), ("WEIR_STOP_", "STOP")):
        rows = re.search(rf"#define WEIR_{which}_LIST\(X\)(.*?)\n\n", text + "\n\n", re.DOTALL)
        assert rows is not None
        found |= {prefix + name for name in re.findall(r"X\((\w+),", rows.group(1))}
    return found


def test_no_status_dtype_stop_or_choice_is_missing() -> None:
    in_headers = enumerators_in_headers() - {"WEIR_DTYPE_NONE", "WEIR_STATUS_MIN"}
    mine = set(numbers())
    lists = {f"WEIR_{name}" for kind in (errors.Status, dtypes.DType) for name in kind.__members__}
    for name in in_headers:
        is_ours = name.startswith(PREFIXES + ("WEIR_STOP_",)) or name in lists
        is_listed = re.search(rf"X\({name[len('WEIR_') :]},", text_of_headers()) is not None
        assert name in mine or not (is_ours or is_listed), f"abi.py lacks {name}"


def test_bits_of_every_dtype_are_the_librarys() -> None:
    library = library_module.library()
    for dtype in dtypes.DType:
        assert library.weir_dtype_bits(dtype) == dtype.bits, dtype
        assert library.weir_dtype_name(dtype).decode() == dtype.name


SCALARS = {
    "unsigned": ctypes.c_uint,
    "int": ctypes.c_int,
    "bool": ctypes.c_bool,
    "size_t": ctypes.c_size_t,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "double": ctypes.c_double,
    "void": None,
}
OPAQUE = {
    "weir_pool",
    "weir_config",
    "weir_checkpoint",
    "weir_mapping",
    "weir_directory",
    "weir_trainer",
    "weir_replica",
    "weir_cuda_batch",
}
# Given strings are to be freed, so their address is needed: what comes back is no c_char_p.
GIVEN_STRINGS = {"weir_config_text", "weir_string_free", "weir_family_preset"}


def ctype_of(declared: str, function: str) -> Any:
    """The ctypes type of a C type, by the rules of abi.py."""
    n_stars = declared.count("*")
    name = re.sub(r"\bconst\b|\bstruct\b|\*", " ", declared).split()[0]
    if name == "char":
        kind: Any = (
            ctypes.c_void_p
            if function in GIVEN_STRINGS and "const" not in declared
            else ctypes.c_char_p
        )
        if function == "weir_family_preset" and n_stars == 1:
            kind = ctypes.c_char_p
        n_stars -= 1
    elif name in OPAQUE or name == "void":
        kind, n_stars = (ctypes.c_void_p, n_stars - 1) if n_stars else (None, 0)
    elif name in SCALARS:
        kind = SCALARS[name]
    elif name == "float":
        kind = ctypes.c_float
    else:
        kind = getattr(abi, name)
    for _ in range(n_stars):
        kind = ctypes.POINTER(kind)
    return kind


@functools.lru_cache(maxsize=None)
def declarations() -> Dict[str, Tuple[str, List[str]]]:
    """Result and arguments of every exported function."""
    found = {}
    pattern = re.compile(r"WEIR_API\s+([\w\s*]+?)(\w+)\s*\(([^;]*)\)\s*;")
    for result, name, arguments in pattern.findall(text_of_headers()):
        split = [] if arguments.strip() == "void" else arguments.split(",")
        found[name] = (result, [re.sub(r"\w+\s*(\[\w*\])?$", r" \1", a.strip()) for a in split])
    return found


@pytest.mark.parametrize("name", [name for name, _, _ in prototypes.PROTOTYPES])
def test_prototype_is_the_headers(name: str) -> None:
    result, arguments = next((r, a) for n, r, a in prototypes.PROTOTYPES if n == name)
    declared_result, declared = declarations()[name]
    assert result == ctype_of(declared_result, name)
    assert list(arguments) == [ctype_of(argument, name) for argument in declared]
    assert hasattr(library_module.library(), name)


# ---- the library -----------------------------------------------------------------------------


def run(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_a_library_that_is_named_but_not_there_is_said_so() -> None:
    done = run("import weir; weir.version()", WEIR_LIBRARY="/nowhere/libweir.so")
    assert "ImportError: WEIR_LIBRARY names /nowhere/libweir.so" in done.stderr


def test_a_library_of_another_version_is_refused_with_both(tmp_path: pathlib.Path) -> None:
    assert COMPILER is not None
    source, other = tmp_path / "other.c", tmp_path / "libweir.so"
    source.write_text('const char *weir_version(void) { return "9.8.7"; }\n', encoding="utf-8")
    subprocess.run([COMPILER, "-shared", "-fPIC", str(source), "-o", str(other)], check=True)
    done = run("import weir; weir.version()", WEIR_LIBRARY=str(other))
    package = pathlib.Path(library_module.__file__).parent
    assert (
        f"ImportError: {other} is Weir 9.8.7, the package {package} is Weir "
        f"{library_module.__version__}"
    ) in done.stderr


def test_what_is_no_libweir_is_refused(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library", encoding="utf-8")
    assert (
        f"ImportError: {text} cannot be loaded"
        in run("import weir; weir.version()", WEIR_LIBRARY=str(text)).stderr
    )


def test_import_brings_neither_numpy_nor_torch() -> None:
    done = run(
        "import sys, weir; weir.formats(); weir.tensor(bytearray(4));"
        "print([m for m in ('numpy', 'torch', 'ml_dtypes', 'vllm') if m in sys.modules])",
        WEIR_LIBRARY=library_module.library_path(),
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_every_exported_name_is_there() -> None:
    import weir

    for name in weir.__all__:
        assert getattr(weir, name) is not None
        assert name in dir(weir)
    with pytest.raises(AttributeError, match="module 'weir' has no attribute 'nothing'"):
        weir.nothing
