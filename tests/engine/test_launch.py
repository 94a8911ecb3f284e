"""Flags, toolkits and errors of the one entry; whole runs are in tests/test_tools.py."""

import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmvit_backbones.engine import (
    LaunchError,
    NonFiniteError,
    launch,
    launch_test,
    launch_train,
    run_tool,
)
from tests.checkpoints.payloads import write_payload

PIPELINE = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}, {'type': 'Pack'}]


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch):
    # Setting and deleting makes monkeypatch put back what stood there before the test.
    for name in ('LOCAL_RANK', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(launch, 'find_spec', lambda name: object())


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')


@pytest.fixture
def runner(monkeypatch):
    """Record the config that would run."""

    class Recorder:
        cfg = None

        def train(self):
            pass

        def test(self):
            return {'mIoU': 50.0}

    recorder = Recorder()

    def build_runner(cfg):
        recorder.cfg = cfg
        return recorder

    monkeypatch.setattr(launch, 'build_runner', build_runner)
    return recorder


def make_config(scope='mmseg', **settings):
    dataset = {'type': 'Data', 'pipeline': PIPELINE}
    return Config(
        {
            'default_scope': scope,
            'model': {'type': 'Model'},
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 1.0}},
            'test_dataloader': {'num_workers': 0, 'dataset': dataset},
            'test_evaluator': {'type': 'IoUMetric'},
            'default_hooks': {'visualization': {'type': 'Hook'}},
            'visualizer': {'type': 'Visualizer'},
            **settings,
        }
    )


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'my_config.py'
    make_config().dump(path)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'weights.pth'
    path.touch()
    return str(path)


@pytest.mark.usefixtures('installed')
class TestTrain:
    def test_defaults(self, config_file, runner):
        launch_train(config_file)
        assert Path(runner.cfg.work_dir) == Path('work_dirs/my_config')
        assert runner.cfg.launcher == 'none'
        assert runner.cfg.optim_wrapper.type == 'OptimWrapper'
        assert 'resume' not in runner.cfg
        assert os.environ['LOCAL_RANK'] == '0'

    def test_work_dir_of_flag_comes_before_config(self, config_file, runner):
        options = {'work_dir': 'from_config', 'model.type': 'Other'}
        launch_train(config_file, cfg_options=options)
        assert runner.cfg.work_dir == 'from_config'
        assert runner.cfg.model.type == 'Other'
        launch_train(config_file, cfg_options=options, work_dir='from_flag')
        assert runner.cfg.work_dir == 'from_flag'

    def test_resume(self, config_file, checkpoint, runner):
        launch_train(config_file, resume='auto')
        assert runner.cfg.resume is True
        assert runner.cfg.load_from is None
        launch_train(config_file, resume=checkpoint)
        assert runner.cfg.resume is True
        assert runner.cfg.load_from == checkpoint

    @pytest.mark.usefixtures('accelerator')
    def test_launcher_on_accelerator(self, config_file, runner):
        launch_train(config_file, launcher='pytorch', local_rank=3)
        assert runner.cfg.launcher == 'pytorch'
        assert os.environ['LOCAL_RANK'] == '3'

    def test_launcher_on_cpu(self, config_file, monkeypatch):
        monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
        with pytest.raises(LaunchError, match=r"launcher 'slurm' needs an accelerator.*has 'cpu'"):
            launch_train(config_file, launcher='slurm')

    def test_missing_config(self):
        with pytest.raises(LaunchError, match=r"config must be an existing file, got 'no\.py'"):
            launch_train('no.py')

    def test_missing_checkpoint(self, config_file):
        with pytest.raises(LaunchError, match=r"checkpoint must be .* got 'no\.pth'"):
            launch_train(config_file, resume='no.pth')

    def test_broken_config_passes_through(self, tmp_path):
        path = tmp_path / 'broken.py'
        path.write_text('model = dict(')
        with pytest.raises(SyntaxError):
            launch_train(str(path))


@pytest.mark.usefixtures('installed')
class TestTest:
    def test_all_flags(self, config_file, checkpoint, runner):
        metrics = launch_test(
            config_file, checkpoint, work_dir='w', show_dir='s', out='o', tta=True
        )
        assert metrics == {'mIoU': 50.0}
        assert runner.cfg.load_from == checkpoint
        assert runner.cfg.work_dir == 'w'
        assert runner.cfg.visualizer.save_dir == 's'
        assert runner.cfg.test_evaluator[0].output_dir == 'o'
        assert runner.cfg.model.type == 'SegTTAModel'

    def test_checkpoint_by_url(self, config_file, runner):
        launch_test(config_file, 'https://example.org/weights.pth')
        assert runner.cfg.load_from == 'https://example.org/weights.pth'

    def test_missing_checkpoint(self, config_file):
        with pytest.raises(LaunchError, match=r"got 'no\.pth'"):
            launch_test(config_file, 'no.pth')


@pytest.mark.parametrize('scope', ['mmocr', None])
def test_unknown_toolkit(scope):
    with pytest.raises(LaunchError, match=f'one of mmdet, mmseg, mmpretrain, got {scope!r}'):
        launch.check_toolkit(make_config(scope))


def test_missing_toolkit(monkeypatch):
    monkeypatch.setattr(launch, 'find_spec', lambda name: None)
    with pytest.raises(LaunchError, match=r'mmseg.*pip install .mmvit-backbones\[onedl\]'):
        launch.check_toolkit(make_config('mmseg'))


def test_mmcv_without_operators(monkeypatch):
    monkeypatch.setattr(launch, 'find_spec', lambda name: None if name == 'mmcv._ext' else object())
    launch.check_toolkit(make_config('mmseg'))
    with pytest.raises(LaunchError, match='--no-build-isolation'):
        launch.check_toolkit(make_config('mmdet'))


@pytest.mark.usefixtures('accelerator')
def test_amp():
    cfg = make_config()
    launch.enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    cfg.optim_wrapper.loss_scale = 512.0
    launch.enable_amp(cfg)
    assert cfg.optim_wrapper.loss_scale == 512.0
    cfg.optim_wrapper.type = 'DeepSpeedOptimWrapper'
    with pytest.raises(LaunchError, match="got 'DeepSpeedOptimWrapper'"):
        launch.enable_amp(cfg)


def test_amp_on_cpu(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    with pytest.raises(LaunchError, match=r"amp needs an accelerator.*has 'cpu'"):
        launch.enable_amp(make_config())


def test_auto_scale_lr():
    cfg = make_config(auto_scale_lr={'enable': False, 'base_batch_size': 16})
    launch.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable is True
    with pytest.raises(LaunchError, match='base_batch_size'):
        launch.enable_auto_scale_lr(make_config())


def test_pictures():
    cfg = make_config('mmdet')
    launch.enable_pictures(cfg, 'shown')
    assert cfg.default_hooks.visualization == {
        'type': 'Hook',
        'draw': True,
        'test_out_dir': 'shown',
    }
    cfg = make_config('mmseg')
    launch.enable_pictures(cfg, 'shown')
    assert cfg.default_hooks.visualization == {'type': 'Hook', 'draw': True}
    assert cfg.visualizer.save_dir == 'shown'
    cfg = make_config('mmpretrain')
    launch.enable_pictures(cfg, 'shown')
    assert cfg.default_hooks.visualization == {'type': 'Hook', 'enable': True, 'out_dir': 'shown'}
    with pytest.raises(LaunchError, match='visualization'):
        launch.enable_pictures(make_config(default_hooks={}), 'shown')


@pytest.mark.parametrize(
    ('scope', 'wrapper'),
    [
        ('mmdet', 'DetTTAModel'),
        ('mmseg', 'SegTTAModel'),
        ('mmpretrain', 'AverageClsScoreTTA'),
    ],
)
def test_tta_of_toolkit(scope, wrapper):
    inner = {'type': 'Data', 'pipeline': PIPELINE}
    cfg = make_config(scope, test_dataloader={'dataset': {'type': 'Repeat', 'dataset': inner}})
    launch.enable_tta(cfg)
    assert cfg.model.type == wrapper
    assert cfg.model.module == {'type': 'Model'}
    load, augment = cfg.test_dataloader.dataset.dataset.pipeline
    assert load == PIPELINE[0]
    assert [flip['prob'] for flip in augment['transforms'][0]] == [0.0, 1.0]
    assert augment['transforms'][1:] == [[PIPELINE[1]], [PIPELINE[2]]]


def test_tta_of_config():
    pipeline = [{'type': 'Mine'}]
    cfg = make_config(tta_model={'type': 'MyTTA', 'option': 1}, tta_pipeline=pipeline)
    launch.enable_tta(cfg)
    assert cfg.model == {'type': 'MyTTA', 'option': 1, 'module': {'type': 'Model'}}
    assert cfg.test_dataloader.dataset.pipeline == pipeline


def test_flip_pipeline_keeps_the_flip_in_named_meta_keys():
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'Pack', 'meta_keys': ('img_id',)}]
    augment = launch.flip_pipeline(pipeline)[-1]
    assert augment['transforms'][-1][0]['meta_keys'] == ('img_id', 'flip', 'flip_direction')
    assert pipeline[-1]['meta_keys'] == ('img_id',)


def test_dump_predictions():
    cfg = make_config('mmdet', test_evaluator=[{'type': 'CocoMetric'}])
    launch.dump_predictions(cfg, 'out.pkl')
    assert cfg.test_evaluator[0] == {'type': 'CocoMetric'}
    assert cfg.test_evaluator[1] == {'type': 'DumpDetResults', 'out_file_path': 'out.pkl'}
    with pytest.raises(LaunchError, match=r"end in \.pkl or \.pickle, got 'out\.json'"):
        launch.dump_predictions(cfg, 'out.json')
    with pytest.raises(LaunchError, match='IoUMetric'):
        launch.dump_predictions(make_config('mmseg', test_evaluator={'type': 'Other'}), 'out')


def test_dataloader_defaults_of_mmpretrain():
    cfg = make_config(train_dataloader={'num_workers': 2, 'pin_memory': False}, val_dataloader=None)
    launch.set_dataloader_defaults(cfg)
    assert cfg.train_dataloader.persistent_workers is True
    assert cfg.train_dataloader.pin_memory is False
    assert cfg.test_dataloader.persistent_workers is False
    assert cfg.test_dataloader.collate_fn.type == 'default_collate'
    assert cfg.val_dataloader is None


def test_torch_load_runs_no_code(tmp_path):
    """Code that calls torch itself, such as a converter of a toolkit."""
    bad = write_payload(tmp_path / 'bad.pth', tmp_path / 'made', 'zip', 'meta', 'reduce', 2)
    launch.read_checkpoints_safely()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(bad, weights_only=False)
    assert not (tmp_path / 'made').exists()


def test_trust_of_the_user_stays(monkeypatch):
    monkeypatch.setenv('MMVIT_ALLOW_UNSAFE_PICKLE', '1')
    launch.read_checkpoints_safely()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_choice_of_the_user_stays(monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    launch.read_checkpoints_safely()
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '0'


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (LaunchError('no config'), 'error: no config'),
        (NonFiniteError('the loss is nan'), 'error: the loss is nan'),
        (OSError(28, 'No space left on device', 'a.pth'), 'error: a.pth: No space left on device'),
    ],
)
def test_tool_ends_with_one_line(error, line):
    def launch_it(name):
        raise error

    with pytest.raises(SystemExit) as caught:
        run_tool(launch_it, {'name': 'x'})
    assert caught.value.code == line


def test_tool_lets_other_errors_through():
    def launch_it():
        raise KeyError('a bug')

    with pytest.raises(KeyError):
        run_tool(launch_it, {})


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_tool_ends_at_a_signal(number, code, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def launch_it():
        with launch.stoppable():
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as caught:
        run_tool(launch_it, {})
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith(f'stopped by {number.name}; --resume')
    assert signal.getsignal(signal.SIGTERM) == before
