"""What a pickle may name, and what is done instead of it.

Each name is a key into `NAMES`. Behind it stands one of our own functions, which checks its
arguments; no named module is imported and no named function is called.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

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


def describe(target: Any) -> str:
    """An object in an error message; not its `repr`, which can be endless."""
    return repr(target.name[:100]) if isinstance(target, Name) else f'a {type(target).__name__}'


def check_key(key: Any) -> Any:
    """Check a key of a dictionary: the hash of nested tuples can take forever."""
    parts = key if type(key) is tuple else (key,)
    if not all(type(part) in _SCALARS for part in parts):
        raise RefusedError('it holds a dictionary or set with keys that are not plain')
    return key


def pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(map(check_key, items[::2]), items[1::2], strict=True)


def make_new(cls: Any, args: Any) -> Any:
    if not isinstance(cls, Name) or cls.new is None:
        raise RefusedError(f'it makes an object of {describe(cls)}')
    if args != ():
        raise RefusedError(f'it makes an object of {describe(cls)} from arguments')
    return cls.new()


def _reconstruct_object(cls: Any, base: Any, state: Any) -> Any:
    """`copyreg._reconstructor`, by which protocols 0 and 1 make objects."""
    if not isinstance(base, Name) or base.name != 'builtins.object' or state is not None:
        raise RefusedError(f'it makes an object of {describe(cls)} from another class')
    return make_new(cls, ())


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


def make_frozenset(values: list[Any] | tuple[Any, ...] = ()) -> frozenset:
    return frozenset(map(check_key, _of_type(values, list, tuple)))


def _history_method(owner: Any, name: str) -> Name:
    """A method of HistoryBuffer, as protocols below 4 name it. It stays uncalled."""
    is_class = isinstance(owner, Name) and owner.name == HISTORY
    if not is_class or name not in HISTORY_METHODS:
        raise RefusedError("it holds 'builtins.getattr', which could run code")
    return Name(f'{HISTORY}.{name}')


def _ordered_dict(pairs: list[Any] | tuple[Any, ...] = ()) -> OrderedDict:
    return OrderedDict((check_key(key), value) for key, value in _of_type(pairs, list, tuple))


def _set(values: list[Any] | tuple[Any, ...] = ()) -> set:
    return set(map(check_key, _of_type(values, list, tuple)))


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
        raise RefusedError(f'it calls {describe(function)}')
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


FILL: dict[type, Callable[[Any, Any], None]] = {
    ArrayType: _fill_array_type,
    HistoryBuffer: _fill_history,
    OrderedDict: _fill_ordered_dict,
    argparse.Namespace: _fill_namespace,
    np.ndarray: _fill_array,
}

_CALLS: dict[str, Callable[..., Any]] = {
    'builtins.bytearray': _bytearray,
    'builtins.bytes': _bytes,
    'builtins.complex': _complex,
    'builtins.frozenset': make_frozenset,
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
}
# Named as arguments of the others, and never called.
_ARGUMENTS = (
    *(f'{HISTORY}.{method}' for method in HISTORY_METHODS),
    'builtins.object',
    'numpy.ndarray',
    'torch.Tensor',
    'torch.nn.parameter.Parameter',
    'torch.storage.UntypedStorage',
    *(f'torch.{name}' for name in STORAGES),
)
# All that a pickle may name but dtypes and the functions that need the memory of its tensors.
NAMES: dict[str, Name] = {
    **{name: Name(name, call) for name, call in _CALLS.items()},
    **{name: Name(name) for name in _ARGUMENTS},
    'argparse.Namespace': Name('argparse.Namespace', new=argparse.Namespace),
    'collections.OrderedDict': Name('collections.OrderedDict', _ordered_dict, OrderedDict),
    HISTORY: Name(HISTORY, new=HistoryBuffer),
}
