"""A pickle reader that builds weights and plain data, and calls nothing that a file names.

A pickle is a program: it names callables and has them called. Here a name is only a key into a
table of our own functions, see `allowed`. No module is imported and no attribute is looked up
because a file says so, and only our own objects can be called, changed or filled. torch's
`weights_only=True` works in the same way, but its table can be widened by any library in the
process, it reads few of the opcodes, and it differs between the versions of torch.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from mmvit_backbones.checkpoints.allowed import (
    DTYPES,
    FILL,
    NAMES,
    OLD_MODULES,
    UNSUPPORTED,
    Name,
    RefusedError,
    Storage,
    check_key,
    describe,
    make_frozenset,
    make_new,
    pairs,
)

MAX_OPERATIONS = 4_000_000  # of one pickle; a large detector's training state has some 100,000
MAX_LINE = 1 << 16  # bytes of one line of a text pickle
MAX_DIMS = 64

# The pickle reader that is written in Python, whose operations can be replaced one by one. Type
# checkers do not know all of it.
_PICKLE: Any = pickle


class BoundedFile:
    """A file that never hands out, or allocates for, more than it holds."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.size - self.file.tell():
            raise EOFError('it ends too early')
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline(MAX_LINE)
        if not line.endswith(b'\n'):
            raise EOFError('it ends too early')
        return line


def unpickle(
    file: BinaryIO,
    size: int,
    find_storage: Callable[[tuple[Any, ...]], Storage] | None = None,
    max_tensor_bytes: int = 0,
) -> Any:
    """Read one pickle and leave the file behind it.

    Args:
        file: The file, standing where the pickle starts.
        size: The file's size in bytes.
        find_storage: Returns the storage for what stands behind `'storage'` in a persistent id;
            None where a pickle has no tensors.
        max_tensor_bytes: Largest size of a tensor. With strides of 0 a tensor can be larger than
            the memory behind it.

    Raises:
        RefusedError: If the pickle asks for something that is not on our list.
        Exception: Anything else if the pickle is damaged.
    """
    return _Reader(BoundedFile(file, size), find_storage, max_tensor_bytes).load()


class _Reader(_PICKLE._Unpickler):
    def __init__(
        self,
        file: BoundedFile,
        find_storage: Callable[[tuple[Any, ...]], Storage] | None,
        max_tensor_bytes: int,
    ) -> None:
        super().__init__(file)
        self.file = file
        self.find_storage = find_storage
        self.max_tensor_bytes = max_tensor_bytes
        self.names = dict(NAMES)
        for function, call in (
            ('_rebuild_tensor', self.rebuild_tensor),
            ('_rebuild_tensor_v2', self.rebuild_tensor),
            ('_rebuild_tensor_v3', self.rebuild_tensor_v3),
        ):
            name = f'torch._utils.{function}'
            self.names[name] = Name(name, call)

    def load(self) -> Any:
        self._unframer = _PICKLE._Unframer(self.file.read, self.file.readline)
        self.read = self._unframer.read
        self.readline = self._unframer.readline
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        for _ in range(MAX_OPERATIONS):
            operation = self.dispatch.get(self.read(1)[0])
            if operation is None:
                raise pickle.UnpicklingError('not a pickle')
            try:
                operation(self)
            except _PICKLE._Stop as stop:
                return stop.value
        raise RefusedError(f'its pickle has more than {MAX_OPERATIONS} operations')

    # What the operations of a pickle may do

    def find_class(self, module: str, name: str) -> Any:
        full = f'{OLD_MODULES.get(module, module)}.{name}'
        if full in DTYPES:
            return DTYPES[full]
        if full in UNSUPPORTED:
            raise RefusedError(f'it holds {UNSUPPORTED[full]}')
        if full not in self.names:
            raise RefusedError(
                f'it holds {full[:100]!r}, which could run code and is no part of weights'
            )
        return self.names[full]

    def persistent_load(self, saved: Any) -> Any:
        if not isinstance(saved, tuple) or not saved or saved[0] != 'storage':
            raise RefusedError('it refers to something outside that is no memory of a tensor')
        if self.find_storage is None:
            raise pickle.UnpicklingError('there is no memory for its tensors')
        return self.find_storage(saved[1:])

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Name) or function.call is None:
            raise RefusedError(f'it calls {describe(function)}')
        if type(args) is not tuple:
            raise pickle.UnpicklingError('arguments must be a tuple')
        return function.call(*args)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = make_new(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        if self.stack.pop() != {}:
            raise RefusedError('it makes an object from keyword arguments')
        self.load_newobj()

    def load_obj(self) -> None:
        function, *args = self.pop_mark()
        self.append(self.call(function, tuple(args)))

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode('ascii') for _ in range(2))
        args = tuple(self.pop_mark())
        self.append(self.call(self.find_class(module, name), args))

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        fill = FILL.get(type(target))
        if fill is None:
            raise RefusedError(f'it changes {describe(target)}')
        fill(target, state)

    def load_append(self) -> None:
        value = self.stack.pop()
        self.target(list).append(value)

    def load_appends(self) -> None:
        values = self.pop_mark()
        self.target(list).extend(values)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self.target(dict, OrderedDict, Counter)[check_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.target(dict, OrderedDict, Counter).update(pairs(items))

    def load_additems(self) -> None:
        values = self.pop_mark()
        self.target(set).update(map(check_key, values))

    def load_dict(self) -> None:
        items = self.pop_mark()  # first: it replaces self.append
        self.append(dict(pairs(items)))

    def load_frozenset(self) -> None:
        values = self.pop_mark()
        self.append(make_frozenset(values))

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), 'little'))))

    def refuse(self) -> None:
        raise RefusedError('it uses an extension or a buffer outside the pickle')

    def target(self, *types: type) -> Any:
        if type(self.stack[-1]) not in types:
            raise RefusedError(f'it fills {describe(self.stack[-1])}')
        return self.stack[-1]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_PICKLE._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.OBJ[0]: load_obj,
        pickle.INST[0]: load_inst,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.DICT[0]: load_dict,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.NEXT_BUFFER[0]: refuse,
        pickle.READONLY_BUFFER[0]: refuse,
        pickle.EXT1[0]: refuse,
        pickle.EXT2[0]: refuse,
        pickle.EXT4[0]: refuse,
    }

    # Tensors

    def rebuild_tensor(
        self,
        storage: Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool = False,
        backward_hooks: Any = None,
        metadata: Any = None,
    ) -> Tensor:
        if metadata:
            raise RefusedError('it holds a conjugated or negated view of a tensor')
        return self.build_tensor(storage, offset, size, stride, storage.dtype)

    def rebuild_tensor_v3(
        self,
        storage: Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        backward_hooks: Any,
        dtype: torch.dtype,
        metadata: Any = None,
    ) -> Tensor:
        if metadata:
            raise RefusedError('it holds a conjugated or negated view of a tensor')
        return self.build_tensor(storage, offset, size, stride, dtype)

    def build_tensor(
        self,
        storage: Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
    ) -> Tensor:
        """View a storage as a tensor, after checking that the view stays inside it."""
        if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError('a tensor without memory')
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > MAX_DIMS:
            raise pickle.UnpicklingError('a tensor whose sizes and strides differ in length')
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
            raise pickle.UnpicklingError('a tensor of impossible sizes')
        empty = torch.empty(0, dtype=dtype)
        item = empty.element_size()
        count = math.prod(size)
        if count == 0:
            return empty.new_empty(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if (last + 1) * item > storage.data.numel():
            raise pickle.UnpicklingError('a tensor larger than its memory')
        if count * item > self.max_tensor_bytes:
            raise RefusedError(f'it holds a tensor of {count * item} bytes, more than the file')
        return empty.set_(storage.data.untyped_storage(), offset, tuple(size), tuple(stride))
