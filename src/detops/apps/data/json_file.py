"""Bytes to JSON, the same on every system: UTF-8 whatever the locale, compressed or not, every refusal by name."""

import gc
import gzip
import json
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load(path: Path, expected: str = "COCO annotations") -> Any:
    """Parse a JSON file: UTF-8 with or without a byte order mark, plain or compressed by gzip.

    The tokens NaN and Infinity are read too: broken files hold them, and who uses a number judges it.

    Args:
        path: The file.
        expected: What the file should hold, for the messages.

    Raises:
        ValueError: It is no such file; the message says why.
        OSError: It cannot be read.
    """
    if stat.S_ISCHR(path.stat().st_mode):  # such as /dev/zero, which never ends
        raise ValueError(f"{path}: expected {expected} as JSON, got a device")
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        if content[:4] == b"PK\x03\x04":
            raise ValueError("an archive; unpack it first")
        if content[:2] in (b"\xff\xfe", b"\xfe\xff") or 0 in content[:2]:
            raise ValueError("text in UTF-16; save it as UTF-8")
        text = content.decode("utf-8-sig")
        with unhurried_collector():
            return json.loads(text)
    except UnicodeDecodeError as error:
        byte = content[error.start]
        reason = f"text that is not UTF-8 (byte {byte:#04x} at {error.start}); save it as UTF-8"
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" and text[error.pos :].lstrip()[:1] in ("{", "[")
        reason = str(error) + (", as in a file of JSON lines" if lines else "")
    except RecursionError:
        reason = "lists or objects that are nested too deep"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"a damaged gzip file ({error})"
    except ValueError as error:  # also of an integer with thousands of digits
        reason = str(error)
    raise ValueError(f"{path}: expected {expected} as JSON, got {reason}")


@contextmanager
def unhurried_collector() -> Iterator[None]:
    """Suspend the search for reference cycles, which JSON has none of, while millions of objects are made.

    Parsing a file of 860,000 boxes takes half the time so.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
