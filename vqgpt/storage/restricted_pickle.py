"""Reading the pickle of a checkpoint without running any code in it, in memory and time that its size bounds.

    bytes -> dicts, lists, numbers, strings, and a StoredTensor for each tensor

A pickle is a small program. This reader lets it build plain containers and describe tensors; any other class or
function that it names becomes INERT, which takes whatever is done to it and does nothing.
"""

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch

from vqgpt.storage.stored_tensor import MOST_DIMENSIONS, Storage, StoredTensor

MOST_BYTES = 2**25  # of a pickle: the numbers of tensors are not in it
MOST_READS = 2**22  # of an instruction or its argument: none makes more than about 80 bytes, but for what it reads
MOST_ARGUMENTS = 16  # of what builds a tensor
MOST_NUMBERED = 2**16  # keys of a dict that are numbers, as optimisers number their parameters
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Stands in for anything that a file names and that is neither a tensor nor a plain container."""

    def append(self, value: Any) -> None:
        """Be filled as a list, and keep nothing."""

    def extend(self, values: Any) -> None:
        """Be filled as a list, and keep nothing."""


INERT = Inert()

MakeStorage = Callable[[torch.dtype, str, int], Storage]  # of a type, a key and a length


def unpickle(file: BinaryIO, make_storage: MakeStorage) -> Any:
    """The object whose pickle begins where `file` stands; `make_storage` makes the arrays behind its tensors.

    Raises whatever a damaged pickle can raise, UnpicklingError if it would take more than a checkpoint does.
    """
    return _Unpickler(_Bounded(file), make_storage).load()


class _Bounded:
    """A file as the unpickler reads it: so many bytes, and so many times."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes_left = MOST_BYTES
        self.reads_left = MOST_READS
        self.copies_left = 0  # of parts: each can be copied once

    def read(self, count: int) -> bytes:
        if count > self.bytes_left:
            raise pickle.UnpicklingError("its pickle is too long")
        data = self.file.read(count)
        self.spend(len(data))
        return data

    def readline(self) -> bytes:
        line = self.file.readline(self.bytes_left)
        self.spend(len(line))
        return line

    def spend(self, num_bytes: int, times: int = 1) -> None:
        self.bytes_left -= num_bytes
        self.reads_left -= times
        self.copies_left += times
        if self.reads_left < 0:
            raise pickle.UnpicklingError("its pickle has too many parts")

    def copy_one(self) -> None:
        self.copies_left -= 1
        if self.copies_left < 0:
            raise pickle.UnpicklingError("its pickle copies more than it holds")


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, not the one in C, which a file of a few bytes can make allocate gigabytes.

    What an instruction makes is no larger than what the file spends on it. Dicts keep keys that are strings or small
    numbers only, so that no key is ever hashed that was built to be slow, and no state is put into any object.
    """

    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: _Bounded, make_storage: MakeStorage) -> None:
        super().__init__(file, encoding="utf-8")
        self.file = file
        self.make_storage = make_storage
        self.known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): self._new_dict,
            ("torch", "Size"): _size,
            ("torch._utils", "_rebuild_tensor"): _stored_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _stored_tensor,
            ("torch._utils", "_rebuild_parameter"): _stored_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _stored_parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): _stored_with_type,
        }

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for; it is never imported."""
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        return self.known.get((module, name), INERT)

    def persistent_load(self, reference: Any) -> Storage | Inert:
        """The array that a reference ("storage", type, key, device, length, ...) means."""
        if type(reference) is not tuple or len(reference) < 5 or type(reference[1]) is not torch.dtype:
            return INERT
        _, dtype, key, _, length = reference[:5]
        if type(key) is not str or type(length) is not int or length < 0:
            raise pickle.UnpicklingError("a storage without a key or a length")
        return self.make_storage(dtype, key, length)

    def load_frame(self) -> None:
        """So many bytes to read ahead: they are read one after the other all the same."""
        self.read(8)

    def load_memoize(self) -> None:
        """The object at hand, to be referred to; a single byte, which makes more than any other."""
        self.file.spend(0, 2)
        self.memo[len(self.memo)] = self.stack[-1]

    def load_reduce(self) -> None:
        """What a function of the file makes of its arguments."""
        arguments, function = self.stack.pop(), self.stack.pop()
        called = callable(function) and type(arguments) is tuple and len(arguments) <= MOST_ARGUMENTS
        self.append(function(*arguments) if called else INERT)

    def load_new(self) -> None:
        """An object of a class, or of a function of the file, and its arguments."""
        self.stack.pop()
        self.stack[-1] = INERT

    def load_new_ex(self) -> None:
        """The same, with named arguments."""
        self.stack.pop()
        self.load_new()

    def load_inst(self) -> None:
        """The same, as old files have it."""
        self.readline(), self.readline()
        self.load_marked()

    def load_marked(self) -> None:
        """An object of what there is after a mark; or a set, of which nothing is kept."""
        self.pop_mark()
        self.append(INERT)

    def load_setitem(self) -> None:
        """One item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        """Some items of a dict."""
        items = self.pop_mark()
        _put(self.stack[-1], items)

    def load_dict(self) -> None:
        """A dict and its items."""
        items = self.pop_mark()
        self.append({})
        _put(self.stack[-1], items)

    def load_set(self) -> None:
        """An empty set, of which nothing is kept."""
        self.append(INERT)

    def load_additems(self) -> None:
        """Some items of a set."""
        self.pop_mark()

    def load_build(self) -> None:
        """The state of an object."""
        self.stack.pop()

    def load_bytearray8(self) -> None:
        """An array of bytes, which no checkpoint needs."""
        raise pickle.UnpicklingError("an array of bytes")

    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.MEMOIZE[0]] = load_memoize
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_new
    dispatch[pickle.NEWOBJ_EX[0]] = load_new_ex
    dispatch[pickle.INST[0]] = load_inst
    dispatch[pickle.OBJ[0]] = load_marked
    dispatch[pickle.FROZENSET[0]] = load_marked
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.EMPTY_SET[0]] = load_set
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def _new_dict(self, pairs: Any = (), *_: Any) -> dict[str | int, Any]:
        """A dict of (key, value), as Python 2 wrote ordered ones, each of which the file spells out."""
        filled: dict[str | int, Any] = {}
        for pair in pairs:
            self.file.copy_one()
            key, value = pair
            _put(filled, [key, value])
        return filled


def _put(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is str or (type(key) is int and 0 <= key < MOST_NUMBERED):
                target[key] = value


def _size(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError("a shape of impossible sizes")
    return tuple(values)


def _stored_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor | Inert:
    if not isinstance(storage, Storage):
        return INERT
    return StoredTensor(storage=storage, offset=offset, shape=_size(shape), stride=_size(stride))


def _stored_parameter(data: Any, *_: Any) -> Any:
    return data


def _stored_with_type(rebuild: Any, _type: Any, arguments: Any, _state: Any) -> StoredTensor | Inert:
    if rebuild is not _stored_tensor or type(arguments) is not tuple or len(arguments) > MOST_ARGUMENTS:
        return INERT
    return _stored_tensor(*arguments)
