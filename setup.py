"""What pyproject.toml cannot say: a built edgerun has the device profiles of `profiles/` inside its package."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROFILES = Path(__file__).parent / "profiles"


class BuildWithProfiles(build_py):
    """Modules and their data, then the profiles, to where `edgerun.planning.device_profile` looks first."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):  # a tree that is used where it stands has them already
            target = Path(self.build_lib) / "edgerun" / "planning" / "profiles"
            self.mkpath(str(target))
            for path in sorted(PROFILES.glob("*.yaml")):
                self.copy_file(str(path), str(target / path.name))


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithProfiles})
