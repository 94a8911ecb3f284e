#!/usr/bin/env python3
"""C++ compiler for mmcv's operators that reads torch's headers from a precompiled copy.

Nearly all the time of each of mmcv's 77 files goes into torch's headers. This stand-in for `c++`
compiles them once, with the flags of the first file, and adds them to each file. A compiler that
can't use them (other flags, another kind of compiler) reads the headers as always.

usage: CXX=tools/cxx_precompiled.py MMVIT_PRECOMPILED=/tmp/headers pip wheel mmcv ...
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

COMPILER = os.environ.get('MMVIT_CXX', 'c++')
HEADER = '#include <torch/types.h>\n'
DONE = 'tried'  # there once the header was compiled, or could not be


def shared_flags(arguments: list[str]) -> list[str]:
    """Return the flags of a compilation without the names of its files."""
    flags, rest = [], iter(arguments)
    for word in rest:
        if word in ('-MF', '-o'):
            next(rest)
        elif word not in ('-MMD', '-c') and not word.endswith('.cpp'):
            flags.append(word)
    return flags


def precompile(folder: Path, flags: list[str]) -> Path:
    """Compile torch's headers, or wait until another process has."""
    folder.mkdir(parents=True, exist_ok=True)
    header = folder / 'torch_types.h'
    with (folder / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / DONE).exists():
            header.write_text(HEADER)
            output = folder / 'torch_types.h.gch'
            command = [COMPILER, *flags, '-x', 'c++-header', str(header), '-o', str(output)]
            if subprocess.run(command).returncode != 0:
                output.unlink(missing_ok=True)
            (folder / DONE).touch()
    return header


def main() -> None:
    arguments = sys.argv[1:]
    if '-c' in arguments:
        folder = Path(os.environ['MMVIT_PRECOMPILED'])
        header = precompile(folder, shared_flags(arguments))
        arguments = ['-include', str(header), *arguments]
    os.execvp(COMPILER, [COMPILER, *arguments])


if __name__ == '__main__':
    main()
