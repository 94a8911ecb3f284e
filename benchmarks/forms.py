"""The forms in which a model can be run: `eager`, `compiled+bf16`, `onnx`, and so on.

A form is a list of parts joined by `+`. Each part is something that a user can do to any model, or,
where it says so, to ours.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import OURS, subjects
from mmvit_backbones import fuse, kernels
from mmvit_backbones.export import FORMATS, capture

FORWARD, TRAIN = PASSES = ('forward', 'train')
FP32, HALF = 'fp32', 'half'
AUTOCAST = {'bf16': torch.bfloat16, 'fp16': torch.float16}
PRELOADED = {'tcmalloc': ('tcmalloc_minimal', 'tcmalloc'), 'jemalloc': ('jemalloc',)}
# glibc: blocks up to 1 GiB come from the heap, and up to 8 GiB of it are kept when they are freed.
MALLOC = {'MALLOC_MMAP_THRESHOLD_': str(2**30), 'MALLOC_TRIM_THRESHOLD_': str(2**33)}
EXPORTED = ('onnx', 'openvino', 'aoti')
# PyTorch's ONNX exporter takes fused attention of four dimensions only; timm's windows have five.
EXPLICIT_ATTENTION = {'TIMM_FUSED_ATTN': '0'}


@dataclass(frozen=True)
class Part:
    """One part of a form.

    Attributes:
        help: What it does.
        run: The one pass that it is for; empty for both.
        is_ours: Whether only our models have it.
        is_half: Whether it computes in 16 bits.
    """

    help: str
    run: str = ''
    is_ours: bool = False
    is_half: bool = False


PARTS = {
    'eager': Part('as it is built'),
    'fused': Part('mmvit_backbones.fuse', FORWARD, is_ours=True),
    'checkpointed': Part('with_cp=True', TRAIN, is_ours=True),
    'reference': Part('no kernels', is_ours=True),
    **{f'only-{name}': Part('no other kernel', is_ours=True) for name in kernels.KERNEL_NAMES},
    **{f'without-{name}': Part('all others', is_ours=True) for name in kernels.KERNEL_NAMES},
    'compiled': Part('torch.compile'),
    'frozen': Part('torch.compile with Inductor freezing', FORWARD),
    'channels_last': Part('weights and images in this memory format'),
    'bf16': Part('under autocast', is_half=True),
    'fp16': Part('under autocast', is_half=True),
    'pure-bf16': Part('weights and images', is_half=True),
    'malloc': Part(' '.join(f'{key}={value}' for key, value in MALLOC.items())),
    'tcmalloc': Part('preloaded'),
    'jemalloc': Part('preloaded'),
    'onnx': Part('ONNX Runtime, torch.export for this size', FORWARD),
    'openvino': Part('OpenVINO, torch.export for this size', FORWARD),
    'aoti': Part('AOTInductor, torch.export for this size', FORWARD),
}


def parse_form(text: str) -> frozenset[str]:
    """Return the parts of a form.

    Raises:
        ValueError: If a part is not known.
    """
    parts = frozenset(text.split('+'))
    if unknown := sorted(parts - PARTS.keys()):
        raise ValueError(f'a form is made of {", ".join(PARTS)}; got {", ".join(unknown)}')
    return parts


def serves(form: str, subject: str, run: str) -> bool:
    """Whether a subject has a form for a pass."""
    parts = [PARTS[name] for name in parse_form(form)]
    return all(part.run in ('', run) and (subject == OURS or not part.is_ours) for part in parts)


def precision(form: str) -> str:
    """Return `'half'` for a form that computes in 16 bits, else `'fp32'`."""
    return HALF if any(PARTS[name].is_half for name in parse_form(form)) else FP32


def _library(name: str) -> str | None:
    return next(filter(None, map(find_library, PRELOADED[name])), None)


def is_installed(form: str) -> bool:
    """Whether the libraries that a form preloads are there."""
    return all(_library(name) for name in parse_form(form) & PRELOADED.keys())


def environment(form: str) -> dict[str, str]:
    """Return the variables that the process of a form starts with.

    Raises:
        FileNotFoundError: If a library to preload is not installed.
    """
    parts = parse_form(form)
    variables = dict(MALLOC) if 'malloc' in parts else {}
    if parts & {'onnx', 'openvino'}:
        variables |= EXPLICIT_ATTENTION
    for name in parts & PRELOADED.keys():
        library = _library(name)
        if library is None:
            raise FileNotFoundError(f'{name} is not installed')
        variables['LD_PRELOAD'] = library
    return variables


def use_kernels(form: str) -> None:
    """Switch the kernels of this process to what a form asks for."""
    parts, names = parse_form(form), kernels.KERNEL_NAMES
    only = [name for name in names if f'only-{name}' in parts]
    disabled = [n for n in names if f'without-{n}' in parts or (only and n not in only)]
    kernels.use('reference' if 'reference' in parts else 'auto', disabled)


def _autocast(parts: frozenset[str], device: torch.device) -> AbstractContextManager[Any]:
    for name in parts & AUTOCAST.keys():
        return torch.autocast(device.type, AUTOCAST[name])
    return contextlib.nullcontext()


def _build(
    network: str, subject: str, parts: frozenset[str], run: str, images: Tensor
) -> tuple[nn.Module, Tensor]:
    """Return the model and the images in the form's dtype and memory format."""
    settings = dict(with_cp=True) if 'checkpointed' in parts else {}
    model = subjects(network)[subject](network, **settings).to(images.device)
    model.train(run == TRAIN)  # some return None
    if 'fused' in parts:
        model = fuse(model)
    if 'pure-bf16' in parts:
        model, images = model.bfloat16(), images.bfloat16()
    if 'channels_last' in parts:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    return model, images


def build_pass(
    network: str, subject: str, form: str, run: str, images: Tensor
) -> Callable[[], object]:
    """Return a function that makes one pass, after switching this process to the form.

    Args:
        network: A name of `list_models`.
        subject: One of `subjects(network)`.
        form: Parts joined by `+`; those of the environment are for the caller to set.
        run: `'forward'` (without gradients) or `'train'` (forward and backward).
        images: (B, 3, H, W).
    """
    parts = parse_form(form)
    use_kernels(form)
    model, images = _build(network, subject, parts, run, images)
    call: Callable[[Tensor], Any] = model
    if parts & {'compiled', 'frozen'}:
        options: Any = {'freezing': True} if 'frozen' in parts else None
        call = torch.compile(model, dynamic=False, options=options)
    for name in parts & {*EXPORTED}:
        call = _exported(model, name, images)

    def forward() -> None:
        with torch.no_grad(), _autocast(parts, images.device):
            call(images)

    def train() -> None:
        with _autocast(parts, images.device):
            maps = call(images)
        sum(m.float().mean() for m in maps).backward()
        model.zero_grad(set_to_none=True)

    return train if run == TRAIN else forward


def _exported(model: nn.Module, name: str, images: Tensor) -> Callable[[Tensor], Any]:
    kind = FORMATS[name]
    program = capture(model, images, dynamic=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'model{kind.suffix}'
        outputs = [f'map{i}' for i in range(len(program.graph_signature.user_outputs))]
        kind.write(program, outputs, path)
        return kind.load(path)


def serving_kernels(network: str, form: str, run: str, images: Tensor) -> frozenset[str]:
    """Return the names of the kernels that serve a layer of ours in a form, as `explain` says."""
    parts = parse_form(form)
    use_kernels(form)
    model, images = _build(network, OURS, parts, run, images)
    if parts & {'compiled', 'frozen'}:
        model = torch.compile(model, backend='eager', dynamic=False)  # type: ignore[assignment]
    grad = torch.set_grad_enabled(run == TRAIN)
    with grad, _autocast(parts, images.device), contextlib.redirect_stdout(io.StringIO()):
        return frozenset(path.path for path in kernels.explain(model, images)) - {'reference'}
