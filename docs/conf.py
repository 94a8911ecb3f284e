"""Settings of the documentation site; `make docs` builds it into build/docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from mmvit_backbones import __version__  # noqa: E402

project = 'mmvit_backbones'
author = 'the mmvit_backbones authors'
release = version = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
myst_enable_extensions = ['deflist']
exclude_patterns = ['examples/*.py']
myst_heading_anchors = 3
myst_links_external_new_tab = True
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_member_order = 'bysource'

html_theme = 'furo'
html_title = f'{project} {version}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_theme_options = {'top_of_page_buttons': []}
html_show_sourcelink = False

LINK = re.compile(r'\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)')


def take_over(source: Path, target: Path) -> None:
    """Copy a Markdown page into the site; links of other pages and files stay right.

    Args:
        source: Page outside of docs/.
        target: Page to write in docs/, which git ignores.
    """

    def relocate(match: re.Match[str]) -> str:
        linked = (source.parent / match[1]).resolve()
        page = TAKEN_OVER.get(linked, linked)
        up = len(target.relative_to(DOCS).parts) - 1
        if page.is_dir() and TAKEN_OVER.get(page / 'README.md'):
            page = TAKEN_OVER[page / 'README.md']
        if page.is_relative_to(DOCS):
            return f']({"../" * up}{page.relative_to(DOCS)}{match[2] or ""})'
        if page.is_dir():
            return f'] (`{page.relative_to(ROOT)}`)'
        return f']({"../" * (up + 1)}{page.relative_to(ROOT)})'

    text = LINK.sub(relocate, source.read_text(encoding='utf-8'))
    target.parent.mkdir(exist_ok=True)
    if not target.exists() or target.read_text(encoding='utf-8') != text:
        target.write_text(text, encoding='utf-8')


TAKEN_OVER = {
    **{
        readme: DOCS / 'recipes' / f'{readme.parent.name}.md'
        for readme in sorted((ROOT / 'configs').glob('*/README.md'))
    },
    ROOT / 'mmvit_backbones' / 'kernels' / 'README.md': DOCS / 'taken_over' / 'kernels.md',
    ROOT / 'benchmarks' / 'README.md': DOCS / 'taken_over' / 'benchmarks.md',
    ROOT / 'CONTRIBUTING.md': DOCS / 'taken_over' / 'contributing.md',
    ROOT / 'CHANGELOG.md': DOCS / 'taken_over' / 'changelog.md',
}
for page, copy in TAKEN_OVER.items():
    take_over(page, copy)
