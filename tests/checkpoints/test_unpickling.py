"""Pickles: data comes back as it was, and nothing else is built or run."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmvit_backbones.checkpoints import CheckpointError, reading
from mmvit_backbones.checkpoints.reading import read_checkpoint, read_file
from tests.checkpoints import payloads
from tests.utils import assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'weights.pth'


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('legacy', [False, True])
def test_plain_data_comes_back(path: Path, legacy: bool, protocol: int) -> None:
    content = {
        'scalars': [None, True, 1, -1, 2**70, 0.5, 1j, 'text', b'bytes', bytearray(b'ab')],
        'containers': [(), (1,), [], {}, {1, 2}, frozenset({1}), Counter({3: 1}), {(1, 'a'): 2}],
        'arrays': [np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2), '>i4'), np.float64(0.5)],
        'history': HistoryBuffer([1.0, 2.0], [1, 1]),
        'args': argparse.Namespace(lr=0.1),
        'slice': slice(1, None, 2),
    }
    tensors = {
        'shape': torch.Size([1, 2]),
        'dtype': torch.bfloat16,
        'device': torch.device('cuda', 1),
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'view': torch.arange(12).view(3, 4)[1:, ::2].T,
        'expanded': torch.ones(1).expand(5),
        'empty': torch.empty(0, 3),
        **{str(d): torch.ones(2, dtype=d) for d in reading.STORAGES.values()},
        'scalar': torch.tensor(1.5),
    }
    if not legacy and hasattr(torch, 'uint16'):  # since torch 2.3
        tensors['uint16'] = torch.ones(2, dtype=torch.uint16)
    if protocol:  # the first has no way to name the memory of a tensor
        content |= tensors
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    read = read_file(path)
    expected = torch.load(path, weights_only=False)
    assert list(read) == list(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert_same({key: read[key]}, {key: value.detach()})
            assert read[key].stride() == value.stride()
        elif key not in ('arrays', 'history'):
            assert repr(read[key]) == repr(value)
    for ours, value in zip(read['arrays'], expected['arrays'], strict=True):
        np.testing.assert_array_equal(ours, value)
        assert ours.dtype == value.dtype
    for ours, value in zip(read['history'].data, expected['history'].data, strict=True):
        np.testing.assert_array_equal(ours, value)


def test_tensors_that_share_memory_share_it_again(path: Path) -> None:
    weight = torch.zeros(3)
    torch.save({'a': weight, 'b': weight[1:]}, path)
    read = read_checkpoint(path)
    read['a'].fill_(1)
    assert read['b'].tolist() == [1, 1]


@pytest.mark.parametrize('container', payloads.CONTAINERS)
@pytest.mark.parametrize('place', payloads.PLACES)
@pytest.mark.parametrize('variable', ['', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])
def test_code_is_refused(
    tmp_path: Path, container: str, place: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, '1')
    marker = tmp_path / 'made'
    for gadget in payloads.GADGETS:
        for protocol in payloads.PROTOCOLS:
            path = payloads.write_payload(
                tmp_path / 'bad.pth', marker, container, place, gadget, protocol
            )
            with pytest.raises(CheckpointError, match=r'refused, it|neither a \.pth nor') as caught:
                read_checkpoint(path)
            assert '\n' not in str(caught.value)
            assert not marker.exists()


def test_a_user_may_trust_a_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning each time."""
    marker = path.with_name('made')
    payloads.write_payload(path, marker, 'zip', 'meta', 'reduce', 2)
    monkeypatch.setenv('MMVIT_ALLOW_UNSAFE_PICKLE', '1')
    warned: list[str] = []
    monkeypatch.setattr(reading, 'print_log', lambda text, **_: warned.append(text))
    assert read_file(path)['meta']['extra'] is None
    assert marker.exists()
    marker.rmdir()
    read_file(path)
    assert len(warned) == 2
    assert 'code in' in warned[0]


def test_getattr_reaches_methods_of_histories_only(path: Path) -> None:
    """Files of old MMEngine versions name it, for a list of `HistoryBuffer`'s methods."""

    class Method:
        def __init__(self, owner: type, name: str) -> None:
            self.args = owner, name

        def __reduce__(self) -> tuple:
            return getattr, self.args

    torch.save({'a': Method(HistoryBuffer, 'mean')}, path)
    assert not callable(read_file(path)['a'])
    for owner, name in ((HistoryBuffer, '__init__'), (argparse.Namespace, '_get_args')):
        torch.save({'a': Method(owner, name)}, path)
        with pytest.raises(CheckpointError, match='refused'):
            read_file(path)


def unsupported(kind: str) -> object:
    if kind == 'sparse':
        return torch.eye(2).to_sparse()
    if kind == 'meta':
        return torch.empty(2, device='meta')
    if kind == 'conjugated':
        return torch.ones(2, dtype=torch.complex64).conj()
    return {(((1,),),): 1}


@pytest.mark.parametrize('kind', ['sparse', 'meta', 'conjugated', 'keys that are not plain'])
def test_what_is_no_weights_is_named(path: Path, kind: str) -> None:
    torch.save({'a': unsupported(kind)}, path)
    with pytest.raises(CheckpointError, match=f'refused, it holds.*{kind}'):
        read_checkpoint(path)
