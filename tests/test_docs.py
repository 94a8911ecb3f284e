"""The site's code runs as it stands there, or a comment before it says why not.

`test_readme.py` runs docs/how_to/predict.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvit_backbones.engine.launch import tools_folder

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(
    [
        *(DOCS / f'{name}.md' for name in ('index', 'quickstart', 'your_data', 'networks')),
        *(DOCS / f'{name}.md' for name in ('numbers', 'faq', 'architecture', 'api')),
        *(page for page in (DOCS / 'how_to').glob('*.md') if page.stem != 'predict'),
        ROOT / 'CONTRIBUTING.md',
        ROOT / 'benchmarks' / 'README.md',
    ]
)
BLOCK = re.compile(r'(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)```', re.DOTALL)
EXAMPLES = sorted((DOCS / 'examples').glob('*.py'))


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Comments before, and code of, the blocks of a page in one language."""
    found = BLOCK.findall(page.read_text(encoding='utf-8'))
    return [(comment, code) for comment, kind, code in found if kind == language]


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=folder, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_python_blocks_run(tmp_path: Path) -> None:
    programs = []
    for page in PAGES:
        for comment, code in blocks(page, 'python'):
            if comment.startswith('config:'):
                continue  # the test below runs it
            if comment.startswith('not run:'):
                assert len(comment) > len('not run: '), page
            else:
                programs.append((str(page.relative_to(ROOT)), code))
    assert len(programs) >= 8
    runner = (
        'import traceback\n'
        f'for page, code in {programs!r}:\n'
        '    try:\n'
        '        exec(code, {})\n'
        '    except Exception:\n'
        '        traceback.print_exc()\n'
        '        raise SystemExit(page)\n'
        '    print("ran", page)\n'
    )
    printed = run(runner, tmp_path)
    assert printed.count('ran ') == len(programs)
    assert (tmp_path / 'pyramid.png').exists()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_name_what_exists(page: Path) -> None:
    for _, code in blocks(page, 'bash'):
        for path in re.findall(r'\b(?:tools|configs|tests|docs)/[\w./-]+', code):
            assert (ROOT / path).exists(), f'{path} in {page.name}'
        for line in code.replace('\\\n', ' ').splitlines():
            line = re.sub(r'-m benchmarks\.(\w+)', r'benchmarks/\1.py', line)
            tool = re.search(r'(tools|benchmarks)/\w+\.py', line)
            for flag in re.findall(r'\s(--[a-z-]+)', line) if tool else ():
                source = "'--help'" + (ROOT / tool[0]).read_text(encoding='utf-8')
                if tool[1] == 'benchmarks':  # its programs share flags
                    source += (ROOT / 'benchmarks' / 'run.py').read_text(encoding='utf-8')
                if tool[0] in ('tools/train.py', 'tools/test.py'):  # flags of the toolkits' own
                    source = (tools_folder('mmpretrain') / Path(tool[0]).name).read_text()
                assert f"'{flag}'" in source, f'{flag} of {tool[0]} in {page.name}'


def test_pictures_exist() -> None:
    for page in PAGES:
        for path in re.findall(r'!\[[^\]]*\]\(([^)]+)\)', page.read_text(encoding='utf-8')):
            assert (page.parent / path).exists(), f'{path} in {page.name}'


def write_coco(folder: Path, count: int) -> None:
    """Write images with one rectangle each, and their boxes, as `docs/your_data.md` shows."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        (folder / split).mkdir(parents=True)
        images, boxes = [], []
        for i in range(count):
            pixels = rng.integers(0, 80, (96, 128, 3), np.uint8)
            left, top = int(rng.integers(5, 60)), int(rng.integers(5, 40))
            pixels[top : top + 40, left : left + 50] = (220, 40 + 150 * (i % 2), 40)
            Image.fromarray(pixels).save(folder / split / f'{i}.jpg')
            images.append(dict(id=i, file_name=f'{i}.jpg', width=128, height=96))
            box = dict(bbox=[left, top, 50, 40], area=2000, iscrowd=0)
            boxes.append(dict(id=i + 1, image_id=i, category_id=1 + i % 2, **box))
        kinds = [dict(id=1, name='screw'), dict(id=2, name='nut')]
        (folder / 'annotations').mkdir(exist_ok=True)
        text = json.dumps(dict(images=images, annotations=boxes, categories=kinds))
        (folder / 'annotations' / f'{split}.json').write_text(text)


def workspace(folder: Path) -> Path:
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_your_own_boxes(tmp_path: Path) -> None:
    workspace(tmp_path)
    (code,) = (
        code
        for comment, code in blocks(DOCS / 'your_data.md', 'python')
        if comment == 'config: my_detector.py'
    )
    assert '(640, 480)' in code
    (tmp_path / 'my_detector.py').write_text(code.replace('(640, 480)', '(160, 120)'))
    write_coco(tmp_path / 'data' / 'mine', 4)
    sizes = 'embed_dims=(8, 12, 16, 20), num_heads=(1, 2, 2, 4), head_dims=8'
    toy = f"dict(stages=('LG',) * 4, {sizes})"
    program = f"""
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile('my_detector.py')
cfg.work_dir = 'run'
cfg.model.backbone.update(arch={toy}, init_cfg=None)
cfg.model.neck.update(in_channels=[12, 16, 20], out_channels=16)
cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
cfg.train_cfg.update(max_epochs=1)
cfg.default_hooks.logger.interval = 1
Runner.from_cfg(cfg).train()
"""
    printed = run(program, tmp_path)
    assert 'Epoch(train) [1][2/2]' in printed
    assert 'Epoch(val) [1][4/4]' in printed


@pytest.mark.parametrize('example', EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    workspace(tmp_path)
    code = example.read_text(encoding='utf-8')
    assert code.startswith('# %% [markdown]\n# # ')
    run(code, tmp_path)
    for name in re.findall(r"savefig\('(\w+\.png)'\)", code):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture).std() > 0
