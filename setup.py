"""Puts configs, tools and the model index into an installed package, where mim looks: cropr_mm/.mim.

Everything else about the package is in setup.cfg.
"""

from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithMim(build_py):
    def run(self) -> None:
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        target = Path(self.build_lib) / 'cropr_mm' / '.mim'
        for folder in ('configs', 'tools'):
            copytree(ROOT / folder, target / folder, dirs_exist_ok=True, ignore=ignore_patterns('__pycache__'))
        copy2(ROOT / 'model-index.yml', target)


setup(cmdclass={'build_py': BuildWithMim})
