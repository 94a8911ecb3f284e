"""Packaging of mmvit_backbones; tool settings stand in pyproject.toml."""

from pathlib import Path
from shutil import copy2, copytree, ignore_patterns, rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


# Programs for developers, which need the checkout around them.
FOR_DEVELOPERS = (
    'cxx_precompiled.py',
    'make_configs.py',
    'setup_env.py',
    'zoo_tables.py',
)


class BuildWithConfigs(build_py):
    """Put configs and tools into the package's `.mim` folder, as the OpenMMLab toolkits do."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmvit_backbones' / '.mim'
        for folder in ('configs', 'tools'):
            rmtree(target / folder, ignore_errors=True)  # of an earlier build
            copytree(
                ROOT / folder,
                target / folder,
                ignore=ignore_patterns('__pycache__', *FOR_DEVELOPERS),
            )
        copy2(ROOT / 'model-index.yml', target)

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if Path(module[2]).name not in FOR_DEVELOPERS]


def read_version() -> str:
    namespace: dict[str, str] = {}
    exec((ROOT / 'mmvit_backbones' / 'version.py').read_text(encoding='utf-8'), namespace)
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
            'numpy<2',  # what torch before 2.3 and these toolkits were built for
            'setuptools<82',  # mmengine imports its pkg_resources
            'ftfy',  # mmsegmentation imports both and asks for neither
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
