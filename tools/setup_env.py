"""Set up everything `make demo` and `make test` need: a virtual environment with torch, mmcv with
compiled operators, the toolkits and this package in editable mode.

Runs on a bare Python with nothing but its standard library. The slow part, compiling mmcv's
operators (about 17 minutes on two cores), is done once: the wheel is kept in
`$MMVIT_WHEEL_CACHE` (default `~/.cache/mmvit_backbones/wheels`), in a folder named by the versions
of torch, mmcv, Python and the platform it was built for. A second run finds its own stamp and ends
at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / 'requirements'
UV = 'uv==0.13.9'
SUPPORTED_PYTHON = ((3, 10), (3, 12))

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


def requirement_files() -> list[Path]:
    return [*sorted(REQUIREMENTS.glob('*.txt')), ROOT / 'setup.py', Path(__file__)]


def stamp_text(venv: Path) -> str:
    """What the environment was made from; another text means that it must be brought up to date."""
    digest = hashlib.sha256()
    for file in requirement_files():
        digest.update(file.read_bytes())
    return f'{digest.hexdigest()} {sys.version} {venv}\n'


def pinned_mmcv() -> str:
    return (REQUIREMENTS / 'mmcv.txt').read_text().strip()


def wheel_cache(python: Path) -> Path:
    described = subprocess.run(
        [str(python), '-c', DESCRIBE_BUILD], check=True, capture_output=True, text=True
    ).stdout.strip()
    user_cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    root = Path(os.environ.get('MMVIT_WHEEL_CACHE', user_cache / 'mmvit_backbones' / 'wheels'))
    return root / f'{pinned_mmcv().replace("==", "-")}-{described}'


def build_mmcv(python: Path, target: Path) -> None:
    """Compile mmcv and put its wheel into `target`, all or nothing."""
    target.mkdir(parents=True, exist_ok=True)
    log = target / 'build.log'
    say(f'compiling {pinned_mmcv()} with its operators: about 17 minutes on 2 cores, once')
    say(f'full output in {log}')
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target) as folder, log.open('w') as log_file:
        command = [str(python), '-m', 'pip', 'wheel', '-v', '--no-build-isolation', '--no-deps']
        command += ['--no-cache-dir', '--wheel-dir', folder, pinned_mmcv()]
        environment = {
            **os.environ,
            'MMCV_WITH_OPS': '1',
            'PATH': f'{python.parent}{os.pathsep}{os.environ["PATH"]}',
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
                say(f'  mmcv: file {step[1]} of {step[2]}, {(shown - started) / 60:.1f} min')
        wheels = list(Path(folder).glob('*.whl'))
        if process.wait() != 0 or len(wheels) != 1:
            raise SystemExit(f'[setup] compiling {pinned_mmcv()} failed; the reason is in {log}')
        wheels[0].rename(target / wheels[0].name)
    say(f'compiled in {(time.monotonic() - started) / 60:.1f} min')


def install(venv: Path) -> None:
    python = venv / 'bin' / 'python'
    if not python.exists():
        say(f'creating {venv}')
        run(sys.executable, '-m', 'venv', venv)
    run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', UV)
    pip: list[str | Path] = [venv / 'bin' / 'uv', 'pip', 'install', '--python', python]
    say('installing torch and torchvision')
    run(*pip, '-r', REQUIREMENTS / 'torch.txt', '-r', REQUIREMENTS / 'build.txt')

    cache = wheel_cache(python)
    wheels = sorted(cache.glob('*.whl'))
    if not wheels:
        build_mmcv(python, cache)
        wheels = sorted(cache.glob('*.whl'))
    else:
        say(f'using the compiled mmcv in {cache}')
    say('installing mmcv, the toolkits, the checks and this package')
    lists: list[str | Path] = []
    for name in ('torch', 'onedl', 'dev'):
        lists += ['-r', REQUIREMENTS / f'{name}.txt']
    run(*pip, '--override', REQUIREMENTS / 'overrides.txt', wheels[0], *lists)
    run(*pip, '--no-deps', '--no-build-isolation', '--editable', ROOT)

    check = subprocess.run([str(python), '-c', CHECK_MMCV], capture_output=True, text=True)
    if check.returncode != 0:
        raise SystemExit(
            f'[setup] the mmcv in {wheels[0]} has no working compiled operators, which detectors '
            f'need. Delete that file and run this again to compile it anew. Python said:\n'
            f'{check.stderr}'
        )
    say('mmcv: compiled operators found, NMS works')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='where to install')
    venv = parser.parse_args().venv.resolve()
    lowest, highest = SUPPORTED_PYTHON
    if not lowest <= sys.version_info[:2] <= highest:
        raise SystemExit(
            f'[setup] Python 3.10 to 3.12 is needed, this is {sys.version.split()[0]}; '
            f'name another with: make PYTHON=python3.11'
        )
    if shutil.which('c++') is None and shutil.which('g++') is None:
        raise SystemExit('[setup] no C++ compiler found: install g++ (Debian: apt install g++)')
    stamp = venv / 'mmvit_setup_done'
    expected = stamp_text(venv)
    if stamp.exists() and stamp.read_text() == expected:
        return
    stamp.unlink(missing_ok=True)
    install(venv)
    stamp.write_text(expected)
    say('done')


if __name__ == '__main__':
    main()
