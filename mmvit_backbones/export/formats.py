"""Writing graphs to files, and running them: one function each for a format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from mmvit_backbones.export.capture import INPUT

Runner = Callable[[Tensor], tuple[Tensor, ...]]
Names = Sequence[str]


def _write_onnx(program: ExportedProgram, names: Names, path: Path) -> None:
    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        input_names=[INPUT],
        output_names=list(names),
        external_data=False,
        verbose=False,
    )


def _run_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        path, options, providers=onnxruntime.get_available_providers()
    )

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {INPUT: images.numpy()})))

    return run


def _write_torch(program: ExportedProgram, names: Names, path: Path) -> None:
    torch.export.save(program, path)


def _run_torch(path: Path) -> Runner:
    program = torch.export.load(path)
    try:
        # A guard would ask for two images or more: PyTorch's guess of the memory format does.
        module = program.module(check_guards=False)
    except TypeError:  # before it made guards
        module = program.module()
    return _without_grad(module)


def _write_aoti(program: ExportedProgram, names: Names, path: Path) -> None:
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except torch._inductor.exc.InductorError as error:
        raise ValueError(
            "format 'aoti': Inductor cannot compile this graph, as it is with most for any size; "
            'pass dynamic=False (--static)'
        ) from error


def _run_aoti(path: Path) -> Runner:
    return _without_grad(torch._inductor.aoti_load_package(str(path)))


def _write_openvino(program: ExportedProgram, names: Names, path: Path) -> None:
    import openvino

    onnx_path = path.with_suffix('.onnx.tmp')
    try:
        _write_onnx(program, names, onnx_path)
        openvino.save_model(openvino.convert_model(onnx_path), path, compress_to_fp16=False)
    finally:
        onnx_path.unlink(missing_ok=True)


def _run_openvino(path: Path) -> Runner:
    import openvino

    # OpenVINO computes in bf16 by default where the CPU can.
    settings: dict[str, Any] = {
        'INFERENCE_PRECISION_HINT': 'f32',
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
    }
    model = openvino.Core().compile_model(path, 'CPU', settings)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs = model(images.numpy())
        return tuple(torch.from_numpy(outputs[i].copy()) for i in range(len(outputs)))

    return run


def _without_grad(function: Callable[[Tensor], Any]) -> Runner:
    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(images))

    return run


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: How its file names end.
        packages: What writing and running it needs beside PyTorch.
        write: Function of a graph, the names of its outputs and the path of the file.
        load: From the path to a function of images (B, C, H, W) that returns the outputs.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Names, Path], None]
    load: Callable[[Path], Runner]


FORMATS = {
    'onnx': Format('.onnx', ('onnx', 'onnxscript', 'onnxruntime'), _write_onnx, _run_onnx),
    'torch': Format('.pt2', (), _write_torch, _run_torch),
    'aoti': Format('.pt2', (), _write_aoti, _run_aoti),
    'openvino': Format(
        '.xml', ('openvino', 'onnx', 'onnxscript'), _write_openvino, _run_openvino
    ),
}  # fmt: skip


def find_format(name: str, path: Path) -> Format:
    """Return a format by its name, if it can be written to a path.

    Raises:
        ValueError: If there is no such format, or the path does not end in its suffix.
        ModuleNotFoundError: If a package that it needs is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f'format must be one of {tuple(FORMATS)}, got {name!r}')
    kind = FORMATS[name]
    if path.suffix != kind.suffix:
        raise ValueError(f'path must end in {kind.suffix!r} for format {name!r}, got {str(path)!r}')
    missing = [package for package in kind.packages if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f'format {name!r} needs {", ".join(missing)}, not installed: pip install '
            f'{" ".join(missing)}'
        )
    return kind
