"""The C tokenizer, built and driven through ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

from mqc.backends.cpu.build import compiler
from mqc.backends.cpu.runtime import FOLDER, INCLUDE

OK, ARGUMENT, DAMAGED, MEMORY, FULL, UNSUPPORTED = 0, 1, 3, 4, 5, 7
PARSE_SPECIAL, ADD_START, GENERATION_PROMPT = 1, 2, 4

ALLOCATE = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_size_t)
RELEASE = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
#: No function of the library takes longer texts of one id.
_BYTES_PER_ID = 1024


class Allocator(ctypes.Structure):
    _fields_ = [("allocate", ALLOCATE), ("release", RELEASE), ("context", c_void_p)]


class Refused(Exception):
    """A status other than MQC_OK."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def build(folder: Path, *options: str) -> ctypes.CDLL:
    """A shared library of the tokenizer alone. Work is counted in `mqc_work`."""
    counter = folder / "work.c"
    counter.write_text("unsigned long long mqc_work;\n")
    sources = [counter, *sorted(FOLDER.glob("tokenizer_*.c"))]
    flags = [
        "-std=c11",
        "-O2",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Werror",
        "-DMQC_COUNT_WORK",
        f"-I{INCLUDE}",
    ]
    made = folder / "tokenizer.so"
    subprocess.run([*compiler(), *flags, *options, *map(str, sources), "-o", str(made)], check=True)
    library = ctypes.CDLL(str(made))
    ids, texts, count = POINTER(c_int32), c_char_p, POINTER(c_size_t)
    for name, arguments in {
        "tokenizer_open": (c_void_p, c_size_t, c_void_p, POINTER(c_void_p)),
        "tokenizer_close": (c_void_p,),
        "tokenizer_encode": (c_void_p, texts, c_size_t, c_uint, ids, c_size_t, count),
        "tokenizer_chat": (
            c_void_p, POINTER(c_char_p), POINTER(c_char_p), count, c_size_t, c_uint, ids, c_size_t, count,
        ),
        "tokenizer_template_reason": (c_void_p,),
        "tokenizer_is_end": (c_void_p, c_int32),
        "tokenizer_decode": (c_void_p, ids, c_size_t, c_void_p, c_size_t, count),
        "decoder_open": (c_void_p, POINTER(c_void_p)),
        "decoder_push": (c_void_p, c_int32, c_void_p, c_size_t, count),
        "decoder_finish": (c_void_p, c_void_p, c_size_t, count),
        "decoder_close": (c_void_p,),
    }.items():  # fmt: skip
        function = getattr(library, f"mqc_{name}")
        function.argtypes, function.restype = arguments, c_int
    library.mqc_tokenizer_template_reason.restype = c_char_p
    return library


class CTokenizer:
    """A tokenizer of the library. Raises `Refused`; texts may be bytes, to be no valid UTF-8."""

    def __init__(self, library: ctypes.CDLL, tables: bytes, allocator: Allocator | None = None) -> None:
        self.library, self.handle = library, c_void_p()
        # The exact size, so that a sanitizer sees what is read behind it; malloc aligns it.
        self._data = (ctypes.c_uint64 * (len(tables) // 8 + 1))()
        ctypes.memmove(self._data, tables, len(tables))
        self._allocator = allocator
        given = None if allocator is None else ctypes.cast(ctypes.pointer(allocator), c_void_p)
        self._check(library.mqc_tokenizer_open(self._data, len(tables), given, byref(self.handle)))

    def close(self) -> None:
        self.library.mqc_tokenizer_close(self.handle)
        self.handle = c_void_p()

    def __del__(self) -> None:
        self.close()

    def _check(self, status: int) -> None:
        if status != OK:
            raise Refused(status)

    def encode(self, text: str | bytes, flags: int = PARSE_SPECIAL, capacity: int | None = None) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return self._ids("tokenizer_encode", (data, len(data), flags), capacity)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        flags: int = GENERATION_PROMPT,
        capacity: int | None = None,
    ) -> list[int]:
        contents = [m["content"].encode() for m in messages]
        count = len(messages)
        arguments = (
            (c_char_p * count)(*(m["role"].encode() for m in messages)),
            (c_char_p * count)(*contents),
            (c_size_t * count)(*map(len, contents)),
            count,
            flags,
        )
        return self._ids("tokenizer_chat", arguments, capacity)

    def _ids(self, name: str, arguments: tuple[Any, ...], capacity: int | None) -> list[int]:
        """With as much room as is needed, which the first call says."""
        function, count = getattr(self.library, f"mqc_{name}"), c_size_t()
        if capacity is None:
            status = function(self.handle, *arguments, None, 0, byref(count))
            if status not in (OK, FULL):
                raise Refused(status)
            capacity = count.value
        ids = (c_int32 * capacity)()
        self._check(function(self.handle, *arguments, ids, capacity, byref(count)))
        return ids[: count.value]

    def decode(self, ids: Sequence[int]) -> str:
        function, size = self.library.mqc_tokenizer_decode, c_size_t()
        given = (c_int32 * len(ids))(*ids)
        status = function(self.handle, given, len(ids), None, 0, byref(size))
        if status not in (OK, FULL):
            raise Refused(status)
        text = ctypes.create_string_buffer(size.value or 1)
        self._check(function(self.handle, given, len(ids), text, size.value, byref(size)))
        return text.raw[: size.value].decode()

    def stream(self, ids: Sequence[int]) -> list[str]:
        """Pieces of text that come with each id, and what is left at the end; each must be UTF-8."""
        decoder, pieces = c_void_p(), []
        self._check(self.library.mqc_decoder_open(self.handle, byref(decoder)))
        try:
            for number in [*ids, None]:
                size, text = c_size_t(), b""
                for capacity in (0, None):  # with no room first: the id must still count only once
                    room = ctypes.create_string_buffer(capacity if capacity is not None else size.value)
                    given = (room, 0 if capacity is not None else size.value, byref(size))
                    if number is None:
                        status = self.library.mqc_decoder_finish(decoder, *given)
                    else:
                        status = self.library.mqc_decoder_push(decoder, number, *given)
                    text = room.raw[: size.value] if status == OK else b""
                    if status != FULL:
                        break
                self._check(status)
                pieces.append(text.decode())
        finally:
            self.library.mqc_decoder_close(decoder)
        return pieces

    @property
    def reason(self) -> str | None:
        found = self.library.mqc_tokenizer_template_reason(self.handle)
        return None if found is None else found.decode()

    def ends(self, number: int) -> bool:
        return bool(self.library.mqc_tokenizer_is_end(self.handle, number))

    def work(self) -> int:
        """Steps that all calls took up to now."""
        return int(c_ulonglong.in_dll(self.library, "mqc_work").value)
