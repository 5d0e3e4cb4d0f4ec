"""What pyproject.toml cannot say: recipes and job scripts stand at the root, and travel inside the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("recipes/*.yaml", "slurm/*.sbatch", "start/*.py", "start/recipes/*.yaml")
"""What a wheel holds in ``lighten/shipped``; ``lighten.utils.shipped`` finds it there, or at a checkout's root."""


class BuildWithShipped(build_py):
    """Builds the package with a copy of what stands outside of it."""

    def run(self) -> None:
        """Build; an editable installation reads the checkout itself."""
        super().run()
        if self.editable_mode:
            return
        for path in (path for pattern in SHIPPED for path in sorted(Path().glob(pattern))):
            target = Path(self.build_lib, "lighten", "shipped", path)
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildWithShipped})
