"""A pickle reader that builds weights and plain data, and calls nothing that a file names.

A pickle is a program: it names callables and has them called. Here a name is only a key into
`_Reader.names`, a table of our own functions that check their arguments. No module is imported and
no attribute is looked up because a file says so, and only our own objects can be called, changed or
filled. torch's `weights_only=True` works in the same way, but its table can be widened by any
library in the process, it reads few of the opcodes, and it differs between the versions of torch.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

MAX_OPERATIONS = 4_000_000  # of one pickle; a large detector's training state has some 100,000
MAX_LINE = 1 << 16  # bytes of one line of a text pickle
MAX_DIMS = 64

STORAGES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexDoubleStorage': torch.complex128,
    'ComplexFloatStorage': torch.complex64,
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

# What cannot be weights of a plain model, with a better reason than "it could run code".
UNSUPPORTED = {
    'torch._utils._rebuild_sparse_tensor': 'a sparse tensor',
    'torch._utils._rebuild_nested_tensor': 'a nested tensor',
    'torch._utils._rebuild_qtensor': 'a quantized tensor',
    'torch._utils._rebuild_meta_tensor_no_storage': 'a meta tensor, which has no values',
    'torch._utils._rebuild_wrapper_subclass': 'a tensor of another class',
}
# Python 2's names, which pickles of protocol 0 to 2 use.
OLD_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}

HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
# Each history lists its statistics.
HISTORY_METHODS = {
    name for name, value in vars(HistoryBuffer).items() if callable(value) and name[0] != '_'
}

# The pickle reader that is written in Python, whose operations can be replaced one by one. Type
# checkers do not know all of it.
_PICKLE: Any = pickle

_SCALARS = (str, bytes, int, float, bool, type(None))


class RefusedError(Exception):
    """The pickle asks for something that is not weights and plain data."""


@dataclass(frozen=True)
class Name:
    """What a name in a pickle stands for.

    Attributes:
        name: Module and name.
        call: Called in place of the named function or class.
        new: Makes an empty object of the named class, which the pickle fills afterwards.
    """

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[[], Any] | None = None


@dataclass
class Storage:
    """Memory of tensors, as bytes."""

    data: Tensor  # (number of bytes,) uint8
    dtype: torch.dtype


@dataclass
class ArrayType:
    """An element type of NumPy arrays: letter and bytes, such as `f8`, and byte order."""

    code: str
    order: str = '='

    def resolve(self) -> np.dtype:
        return np.dtype(self.order + self.code)


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
        self.names = {
            name: Name(name, call)
            for name, call in {
                'builtins.bytearray': _bytearray,
                'builtins.bytes': _bytes,
                'builtins.complex': _complex,
                'builtins.frozenset': _frozenset,
                'builtins.getattr': _history_method,
                'builtins.set': _set,
                'builtins.slice': _slice,
                'collections.Counter': _counter,
                'copyreg._reconstructor': _reconstruct_object,
                '_codecs.encode': _encode,
                'numpy.dtype': _make_array_type,
                **{
                    f'numpy.{core}.{function}': call
                    for core in ('core', '_core')
                    for function, call in (
                        ('multiarray._reconstruct', _empty_array),
                        ('multiarray.scalar', _array_scalar),
                        ('numeric._frombuffer', _array_of_buffer),
                    )
                },
                'torch.Size': _size,
                'torch.device': _device,
                'torch._tensor._rebuild_from_type_v2': _rebuild_from_type,
                'torch._utils._rebuild_parameter': _rebuild_parameter,
                'torch._utils._rebuild_parameter_with_state': _rebuild_parameter,
                'torch._utils._rebuild_tensor': self.rebuild_tensor,
                'torch._utils._rebuild_tensor_v2': self.rebuild_tensor,
                'torch._utils._rebuild_tensor_v3': self.rebuild_tensor_v3,
            }.items()
        }
        for name, call, new in (
            ('argparse.Namespace', None, argparse.Namespace),
            ('collections.OrderedDict', _ordered_dict, OrderedDict),
            (HISTORY, None, HistoryBuffer),
        ):
            self.names[name] = Name(name, call, new)
        for name in (
            *(f'{HISTORY}.{method}' for method in HISTORY_METHODS),
            'builtins.object',
            'numpy.ndarray',
            'torch.Tensor',
            'torch.nn.parameter.Parameter',
            'torch.storage.UntypedStorage',
            *(f'torch.{name}' for name in STORAGES),
        ):
            self.names[name] = Name(name)

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
            raise RefusedError(f'it calls {_describe(function)}')
        if type(args) is not tuple:
            raise pickle.UnpicklingError('arguments must be a tuple')
        return function.call(*args)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _new(self.stack[-1], args)

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
        fill = _FILL.get(type(target))
        if fill is None:
            raise RefusedError(f'it changes {_describe(target)}')
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
        self.target(dict, OrderedDict, Counter)[_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.target(dict, OrderedDict, Counter).update(_pairs(items))

    def load_additems(self) -> None:
        values = self.pop_mark()
        self.target(set).update(map(_key, values))

    def load_dict(self) -> None:
        items = self.pop_mark()  # first: it replaces self.append
        self.append(dict(_pairs(items)))

    def load_frozenset(self) -> None:
        values = self.pop_mark()
        self.append(_frozenset(values))

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), 'little'))))

    def refuse(self) -> None:
        raise RefusedError('it uses an extension or a buffer outside the pickle')

    def target(self, *types: type) -> Any:
        if type(self.stack[-1]) not in types:
            raise RefusedError(f'it fills {_describe(self.stack[-1])}')
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


def _describe(target: Any) -> str:
    """An object in an error message; not its `repr`, which can be endless."""
    return repr(target.name[:100]) if isinstance(target, Name) else f'a {type(target).__name__}'


def _key(key: Any) -> Any:
    """Check a key of a dictionary: the hash of nested tuples can take forever."""
    parts = key if type(key) is tuple else (key,)
    if not all(type(part) in _SCALARS for part in parts):
        raise RefusedError('it holds a dictionary or set with keys that are not plain')
    return key


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(map(_key, items[::2]), items[1::2], strict=True)


def _new(cls: Any, args: Any) -> Any:
    if not isinstance(cls, Name) or cls.new is None:
        raise RefusedError(f'it makes an object of {_describe(cls)}')
    if args != ():
        raise RefusedError(f'it makes an object of {_describe(cls)} from arguments')
    return cls.new()


def _reconstruct_object(cls: Any, base: Any, state: Any) -> Any:
    """`copyreg._reconstructor`, by which protocols 0 and 1 make objects."""
    if not isinstance(base, Name) or base.name != 'builtins.object' or state is not None:
        raise RefusedError(f'it makes an object of {_describe(cls)} from another class')
    return _new(cls, ())


# Functions that stand in for named ones: fixed arguments, no keyword, types checked.


def _bytearray(value: bytes = b'') -> bytearray:
    return bytearray(_of_type(value, bytes))


def _bytes() -> bytes:
    return b''


def _complex(real: float, imag: float) -> complex:
    return complex(_of_type(real, float), _of_type(imag, float))


def _counter(items: dict[Any, Any] | None = None) -> Counter:
    return Counter(_of_type(items or {}, dict))


def _encode(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':
        raise RefusedError('it encodes text')
    return _of_type(text, str).encode('latin1')


def _frozenset(values: list[Any] | tuple[Any, ...] = ()) -> frozenset:
    return frozenset(map(_key, _of_type(values, list, tuple)))


def _history_method(owner: Any, name: str) -> Name:
    """A method of HistoryBuffer, as protocols below 4 name it. It stays uncalled."""
    is_class = isinstance(owner, Name) and owner.name == HISTORY
    if not is_class or name not in HISTORY_METHODS:
        raise RefusedError("it holds 'builtins.getattr', which could run code")
    return Name(f'{HISTORY}.{name}')


def _ordered_dict(pairs: list[Any] | tuple[Any, ...] = ()) -> OrderedDict:
    return OrderedDict((_key(key), value) for key, value in _of_type(pairs, list, tuple))


def _set(values: list[Any] | tuple[Any, ...] = ()) -> set:
    return set(map(_key, _of_type(values, list, tuple)))


def _slice(*ends: int | None) -> slice:
    return slice(*(_of_type(end, int, type(None)) for end in ends))


def _size(sizes: tuple[int, ...] = ()) -> torch.Size:
    return torch.Size(_of_type(sizes, tuple, list))


def _device(kind: str, index: int = 0) -> torch.device:
    return torch.device(_of_type(kind, str), _of_type(index, int))


def _rebuild_parameter(data: Tensor, requires_grad: bool, hooks: Any, state: Any = None) -> Tensor:
    """A parameter's values; what else hangs on it is no data."""
    return _of_type(data, Tensor)


def _rebuild_from_type(function: Any, cls: Any, args: Any, state: Any) -> Tensor:
    """A tensor with attributes, which are left out."""
    is_plain = isinstance(cls, Name) and cls.name in (
        'torch.Tensor',
        'torch.nn.parameter.Parameter',
    )
    if not is_plain or not isinstance(function, Name) or '_rebuild_' not in function.name:
        raise RefusedError('it holds a tensor of another class')
    if function.call is None or function.call is _rebuild_from_type:
        raise RefusedError(f'it calls {_describe(function)}')
    return _of_type(function.call(*args), Tensor)


def _make_array_type(code: str, align: Any = False, copy: Any = False) -> ArrayType:
    return ArrayType(_of_type(code, str))


def _empty_array(cls: Any, shape: Any, code: Any) -> np.ndarray:
    if not isinstance(cls, Name) or cls.name != 'numpy.ndarray':
        raise RefusedError('it holds an array of another class')
    return np.empty(0, np.uint8)


def _array_type(array_type: Any) -> np.dtype:
    """The element type of an array: a number, never an object."""
    if not isinstance(array_type, ArrayType):
        raise RefusedError('it holds an array without a type')
    if not re.fullmatch(r'[biufc]\d{1,2}', array_type.code):
        raise RefusedError('it holds an array of other things than numbers')
    return array_type.resolve()


def _array_scalar(array_type: Any, content: bytes) -> Any:
    (value,) = np.frombuffer(_of_type(content, bytes), _array_type(array_type))
    return value


def _array_of_buffer(content: bytes, array_type: Any, shape: Any, order: str) -> np.ndarray:
    array = np.frombuffer(_of_type(content, bytes, bytearray), _array_type(array_type))
    return array.reshape(_of_type(shape, tuple), order='F' if order == 'F' else 'C').copy()


def _of_type(value: Any, *types: type) -> Any:
    if not isinstance(value, types):
        raise pickle.UnpicklingError(f'{types[0].__name__} expected, got {type(value).__name__}')
    return value


# What an object may be filled with.


def _fill_array(array: Any, state: Any) -> None:
    _, shape, array_type, is_fortran, content = _of_type(state, tuple)
    dtype = _array_type(array_type)
    if not all(type(n) is int and n >= 0 for n in _of_type(shape, tuple)):
        raise pickle.UnpicklingError('an array of impossible sizes')
    if len(_of_type(content, bytes)) != math.prod(shape) * dtype.itemsize:
        raise pickle.UnpicklingError('an array of another size than its content')
    array.__setstate__((1, shape, dtype, bool(is_fortran), content))


def _fill_array_type(array_type: ArrayType, state: Any) -> None:
    order = _of_type(state, tuple)[1]
    if order not in ('<', '>', '=', '|'):
        raise pickle.UnpicklingError('an array of unknown byte order')
    array_type.order = order


def _fill_history(history: HistoryBuffer, state: Any) -> None:
    log, count = (_of_type(state[f'_{name}_history'], np.ndarray) for name in ('log', 'count'))
    if log.ndim != 1 or log.shape != count.shape:
        raise pickle.UnpicklingError('a history of impossible sizes')
    history._log_history = log
    history._count_history = count
    history.max_length = _of_type(state['max_length'], int)


def _fill_namespace(namespace: argparse.Namespace, state: Any) -> None:
    vars(namespace).update({_of_type(key, str): value for key, value in state.items()})


def _fill_ordered_dict(target: OrderedDict, state: Any) -> None:
    """Keep the versions of modules that a state dict carries, and no other attribute."""
    metadata = _of_type(state, dict).get('_metadata')
    if metadata is not None:
        target._metadata = _of_type(metadata, dict)  # type: ignore[attr-defined]


_FILL: dict[type, Callable[[Any, Any], None]] = {
    ArrayType: _fill_array_type,
    HistoryBuffer: _fill_history,
    OrderedDict: _fill_ordered_dict,
    argparse.Namespace: _fill_namespace,
    np.ndarray: _fill_array,
}
