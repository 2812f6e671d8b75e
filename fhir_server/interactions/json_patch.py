"""JSON Patch. https://www.rfc-editor.org/rfc/rfc6902 over pointers of https://www.rfc-editor.org/rfc/rfc6901"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from fhir_server.errors import BadRequest, Unprocessable
from fhir_server.interactions.json_tree import Copies, same

MAX_OPERATIONS: Final = 10_000
_INDEX: Final = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_BAD_ESCAPE: Final = re.compile(r"~(?![01])")

Pointer = tuple[str, ...]


def patched(document: Any, operations: Any) -> Any:
    """`document`, which is changed on the way, after every operation in turn.

    Raises BadRequest for a patch that is not well formed, Unprocessable for one that does not fit.
    """
    if not isinstance(operations, list):
        raise BadRequest("A JSON Patch is an array of operations (RFC 6902)")
    if len(operations) > MAX_OPERATIONS:
        raise BadRequest(f"The patch has more than {MAX_OPERATIONS} operations")
    parsed = [_Operation(index, operation) for index, operation in enumerate(operations)]
    root = _Document(document)
    for operation in parsed:
        operation.apply(root)
    return root.value


class _Operation:
    """One operation, understood before the first is applied."""

    def __init__(self, index: int, operation: Any) -> None:
        self.name = f"[{index}]"
        if not isinstance(operation, dict):
            raise BadRequest(f"Operation {self.name} of the patch is not an object")
        op = operation.get("op")
        if not isinstance(op, str) or op not in _APPLY:
            raise BadRequest(f"Operation {self.name} of the patch: 'op' must be one of {', '.join(_APPLY)}, not {op!r}")
        self.name = f"[{index}] ({op} {operation.get('path')!r})"
        self.path = self._pointer(operation, "path")
        self.source = self._pointer(operation, "from") if op in ("move", "copy") else ()
        if op in ("add", "replace", "test") and "value" not in operation:
            raise BadRequest(f"Operation {self.name} of the patch has no 'value'")
        if op == "move" and self.path[: len(self.source)] == self.source and self.path != self.source:
            raise BadRequest(f"Operation {self.name} of the patch moves a value into itself")
        self.value = operation.get("value")
        self._apply = _APPLY[op]

    def apply(self, root: _Document) -> None:
        self._apply(root, self)

    def misses(self, reason: str) -> Unprocessable:
        return Unprocessable(f"Operation {self.name} of the patch: {reason}")

    def _pointer(self, operation: dict[str, Any], key: str) -> Pointer:
        text = operation.get(key)
        if not isinstance(text, str):
            raise BadRequest(f"Operation {self.name} of the patch: '{key}' must be a JSON Pointer")
        if (text and not text.startswith("/")) or _BAD_ESCAPE.search(text):
            raise BadRequest(
                f"Operation {self.name} of the patch: {text!r} is not a JSON Pointer, such as /name/0/given"
            )
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:])


class _Document:
    """The value being patched, and places in it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.copies = Copies()

    def get(self, pointer: Pointer, operation: _Operation) -> Any:
        value = self.value
        for depth, part in enumerate(pointer):
            where = "/" + "/".join(pointer[: depth + 1])
            if isinstance(value, dict):
                if part not in value:
                    raise operation.misses(f"there is nothing at {where}")
                value = value[part]
            elif isinstance(value, list):
                value = value[self._index(part, len(value) - 1, where, operation)]
            else:
                raise operation.misses(f"there is nothing at {where}")
        return value

    def add(self, pointer: Pointer, value: Any, operation: _Operation) -> None:
        value = self.copies.copy(value, len(pointer))
        if not pointer:
            self.value = value
            return
        parent, last = self.get(pointer[:-1], operation), pointer[-1]
        if isinstance(parent, dict):
            parent[last] = value
        elif isinstance(parent, list):
            end = len(parent)
            parent.insert(end if last == "-" else self._index(last, end, "/" + "/".join(pointer), operation), value)
        else:
            raise operation.misses("its parent is neither an object nor an array")

    def remove(self, pointer: Pointer, operation: _Operation) -> Any:
        value = self.get(pointer, operation)
        if not pointer:
            raise operation.misses("the whole resource cannot be removed")
        parent, last = self.get(pointer[:-1], operation), pointer[-1]
        del parent[last if isinstance(parent, dict) else int(last)]
        return value

    def replace(self, pointer: Pointer, value: Any, operation: _Operation) -> None:
        self.get(pointer, operation)
        if not pointer:
            self.add(pointer, value, operation)
            return
        parent, last = self.get(pointer[:-1], operation), pointer[-1]
        parent[last if isinstance(parent, dict) else int(last)] = self.copies.copy(value, len(pointer))

    def _index(self, part: str, last: int, where: str, operation: _Operation) -> int:
        if not _INDEX.fullmatch(part):
            raise operation.misses(f"{part!r} at {where} is not an index of an array")
        if int(part) > last:
            raise operation.misses(f"the array at {where} is not that long")
        return int(part)


def _test(root: _Document, operation: _Operation) -> None:
    if not same(root.get(operation.path, operation), operation.value):
        raise operation.misses("the value there is another")


def _remove(root: _Document, operation: _Operation) -> None:
    root.remove(operation.path, operation)


def _move(root: _Document, operation: _Operation) -> None:
    root.add(operation.path, root.remove(operation.source, operation), operation)


_APPLY: Final[dict[str, Callable[[_Document, _Operation], None]]] = {
    "add": lambda root, operation: root.add(operation.path, operation.value, operation),
    "remove": _remove,
    "replace": lambda root, operation: root.replace(operation.path, operation.value, operation),
    "move": _move,
    "copy": lambda root, operation: root.add(operation.path, root.get(operation.source, operation), operation),
    "test": _test,
}
