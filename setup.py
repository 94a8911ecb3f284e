"""Packaging of mmvit_backbones; tool settings stand in pyproject.toml."""

from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Put configs and tools into the package's `.mim` folder, as the OpenMMLab toolkits do."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmvit_backbones' / '.mim'
        for folder in ('configs', 'tools'):
            copytree(
                ROOT / folder,
                target / folder,
                ignore=ignore_patterns('__pycache__', 'setup_env.py'),
                dirs_exist_ok=True,
            )
        copy2(ROOT / 'model-index.yml', target)


def read_version() -> str:
    namespace: dict[str, str] = {}
    exec((ROOT / 'mmvit_backbones' / 'version.py').read_text(), namespace)
    return namespace['__version__']


# mmengine and mmcv are needed too, but each exists under two distribution names that install the
# same module (the maintained fork and the original). Requiring one by name would overwrite the
# other in the environments of half the users, so they come with an extra.
setup(
    name='mmvit-backbones',
    version=read_version(),
    description='Twins-SVT and XCiT for mmdetection, mmsegmentation, mmpretrain and PyTorch',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    cmdclass={'build_py': BuildWithConfigs},
    packages=find_packages(include=['mmvit_backbones', 'mmvit_backbones.*']),
    package_data={'mmvit_backbones': ['py.typed', 'kernels/README.md']},
    python_requires='>=3.10,<3.13',
    install_requires=['torch>=2.1', 'einops>=0.8', 'safetensors>=0.5'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmsegmentation>=1.4.2',
            'onedl-mmpretrain>=1.3.6',
        ],
        'openmmlab': [
            'mmengine>=0.10.7',
            'mmcv>=2.1.0,<2.2.0',
            'mmdet>=3.3.0',
            'mmsegmentation>=1.2.2',
            'mmpretrain>=1.2.0',
            'ftfy',
            'regex',
        ],
        'export': ['onnx>=1.18', 'onnxscript>=0.5', 'onnxruntime>=1.20'],
        'hub': ['huggingface_hub>=0.30'],
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
