"""Set up a virtual environment with torch, mmcv, the toolkits and this package in editable mode.

There are three stacks, each with its versions in a folder of requirements/: `default`, what `make
test` and `make demo` use; `originals`, the toolkits of OpenMMLab beside torch 2.1; and `lite`,
torch 2.1 with nothing but mmengine and mmcv without operators.

Runs on a bare Python with nothing but its standard library. The slow part, compiling mmcv's
operators, is done once: the wheel is kept in `$MMVIT_WHEEL_CACHE` (default
`~/.cache/mmvit_backbones/wheels`), in a folder named by the versions of torch, mmcv, Python and the
platform it was built for. A second run finds its own stamp and ends at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = {
    'default': ROOT / 'requirements',
    'originals': ROOT / 'requirements' / 'originals',
    'lite': ROOT / 'requirements' / 'lite',
}
COMPILER = ROOT / 'tools' / 'cxx_precompiled.py'
# Versions that were built with torch's headers compiled once: a fifth of the time.
PRECOMPILED = ('mmcv==2.1.0', 'onedl-mmcv==2.3.6')
UV = 'uv==0.13.9'
# torch 2.1 was built up to Python 3.11.
NEWEST_PYTHON = {'default': (3, 12), 'originals': (3, 11), 'lite': (3, 11)}

CHECK_MMCV = """
import mmcv._ext, torch
from mmcv.ops import nms
boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 9.], [20., 20., 30., 30.]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1].tolist()
assert kept == [0, 2], f'NMS kept {kept}, expected [0, 2]'
"""
# Read in the environment, not parsed from its files: the wheel fits only what is installed.
DESCRIBE_BUILD = """
import platform, sys, sysconfig, torch
accelerator = 'cuda' if torch.cuda.is_available() else 'cpu'
print(f'torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}'
      f'-{sysconfig.get_platform()}-{accelerator}')
"""


def say(message: str) -> None:
    print(f'[setup] {message}', flush=True)


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command])
    if done.returncode != 0:
        raise SystemExit(f'[setup] failed: {" ".join(map(str, command))}')


def stamp_text(venv: Path, requirements: Path) -> str:
    """What the environment was made from; another text means that it must be brought up to date."""
    digest = hashlib.sha256()
    for file in (*sorted(requirements.glob('*.txt')), ROOT / 'setup.py', Path(__file__)):
        digest.update(file.read_bytes())
    return f'{digest.hexdigest()} {sys.version} {venv}\n'


def wheel_cache(python: Path, mmcv: str) -> Path:
    """The folder for the wheel of an mmcv that was compiled for this environment."""
    described = subprocess.run(
        [str(python), '-c', DESCRIBE_BUILD], check=True, capture_output=True, text=True
    ).stdout.strip()
    user_cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    root = Path(os.environ.get('MMVIT_WHEEL_CACHE', user_cache / 'mmvit_backbones' / 'wheels'))
    return root / f'{mmcv.replace("==", "-")}-{described}'


def find_compiler() -> str:
    for name in (os.environ.get('CXX'), 'c++', 'g++'):
        if name and shutil.which(name):
            return name
    raise SystemExit('[setup] no C++ compiler found: install g++ (Debian: apt install g++)')


def build_mmcv(python: Path, mmcv: str, target: Path) -> None:
    """Compile mmcv and put its wheel into `target`, all or nothing."""
    compiler = find_compiler()
    target.mkdir(parents=True, exist_ok=True)
    log = target / 'build.log'
    say(f'compiling {mmcv} with its operators, once; full output in {log}')
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target) as folder, log.open('w') as log_file:
        command = [str(python), '-m', 'pip', 'wheel', '-v', '--no-build-isolation', '--no-deps']
        command += ['--no-cache-dir', '--wheel-dir', folder, mmcv]
        environment = {
            **os.environ,
            'MMCV_WITH_OPS': '1',
            'PATH': f'{python.parent}{os.pathsep}{os.environ["PATH"]}',
            # Debugging symbols take a fifth of the time and nobody reads them.
            'CFLAGS': f'{os.environ.get("CFLAGS", "")} -g0',
        }
        if mmcv in PRECOMPILED:
            environment |= {
                'CXX': str(COMPILER),
                'MMVIT_CXX': compiler,
                'MMVIT_PRECOMPILED': f'{folder}/headers',
            }
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env=environment,
        )
        assert process.stdout is not None
        shown = 0.0
        for line in process.stdout:
            log_file.write(line)
            log_file.flush()
            step = re.match(r'\s*\[(\d+)/(\d+)\]', line)
            if step and time.monotonic() - shown > 15:
                shown = time.monotonic()
                say(f'  mmcv: {progress(int(step[1]), int(step[2]), shown - started)}')
        wheels = list(Path(folder).glob('*.whl'))
        if process.wait() != 0 or len(wheels) != 1:
            raise SystemExit(f'[setup] compiling {mmcv} failed; the reason is in {log}')
        wheels[0].rename(target / wheels[0].name)
    say(f'compiled in {(time.monotonic() - started) / 60:.1f} min')


def progress(done: int, total: int, seconds: float) -> str:
    """Say how far a build is and how long the rest takes at the same pace."""
    left = seconds / done * (total - done)
    return f'file {done} of {total}, {seconds / 60:.1f} min, about {left / 60:.0f} min left'


def compiled_mmcv(python: Path, mmcv: str) -> Path:
    """Return the wheel of an mmcv with operators, from the cache or compiled now."""
    cache = wheel_cache(python, mmcv)
    if not list(cache.glob('*.whl')):
        build_mmcv(python, mmcv, cache)
    else:
        say(f'using the compiled mmcv in {cache}')
    return min(cache.glob('*.whl'))


def check_mmcv(python: Path, wheel: Path) -> None:
    check = subprocess.run([str(python), '-c', CHECK_MMCV], capture_output=True, text=True)
    if check.returncode != 0:
        raise SystemExit(
            f'[setup] the mmcv in {wheel} has no working compiled operators, which detectors '
            f'need. Delete that file and run this again to compile it anew. Python said:\n'
            f'{check.stderr}'
        )
    say('mmcv: compiled operators found, NMS works')


def warn_of_cuda() -> None:
    """Say how to avoid gigabytes that a machine without an NVIDIA GPU has no use for."""
    has_gpu = shutil.which('nvidia-smi') is not None
    if not has_gpu and platform.system() == 'Linux' and 'UV_TORCH_BACKEND' not in os.environ:
        say('no NVIDIA GPU found, but torch on PyPI needs CUDA libraries (2 to 3 GB) on Linux;')
        say("UV_TORCH_BACKEND=cpu takes PyTorch's own CPU builds, where their server is reachable")


def install(venv: Path, requirements: Path) -> None:
    python = venv / 'bin' / 'python'
    if not python.exists():
        say(f'creating {venv}')
        run(sys.executable, '-m', 'venv', venv)
    run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', UV)
    pip: list[str | Path] = [venv / 'bin' / 'uv', 'pip', 'install', '--quiet', '--python', python]
    lists: list[str | Path] = []
    for name in ('torch', 'toolkits', 'dev'):
        lists += ['-r', requirements / f'{name}.txt']
    overrides = ('--override', requirements / 'overrides.txt')

    say('installing torch')
    warn_of_cuda()
    mmcv = requirements / 'mmcv.txt'
    if mmcv.exists():
        run(*pip, '-r', requirements / 'torch.txt', '-r', requirements / 'build.txt')
        wheel = compiled_mmcv(python, mmcv.read_text().strip())
        say('installing mmcv, the toolkits and the checks')
        run(*pip, *overrides, wheel, *lists)
        check_mmcv(python, wheel)
    else:
        run(*pip, *overrides, *lists)
    say('installing this package')
    run(*pip, '--no-build-isolation', '--editable', ROOT)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--stack', choices=REQUIREMENTS, default='default', help='which versions')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='where to install')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    venv, requirements = args.venv.resolve(), REQUIREMENTS[args.stack]
    newest = NEWEST_PYTHON[args.stack]
    if not (3, 10) <= sys.version_info[:2] <= newest:
        raise SystemExit(
            f'[setup] the stack {args.stack!r} needs Python 3.10 to 3.{newest[1]}, this is '
            f'{sys.version.split()[0]}; name another with: make PYTHON=python3.11'
        )
    stamp = venv / 'mmvit_setup_done'
    expected = stamp_text(venv, requirements)
    if stamp.exists() and stamp.read_text() == expected:
        return
    stamp.unlink(missing_ok=True)
    install(venv, requirements)
    stamp.write_text(expected)
    say('done')


if __name__ == '__main__':
    main()
