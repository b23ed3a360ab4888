"""Device profiles by the names that the command line has for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgerun.planning.device_profile import DeviceProfile

THIS = "this"


def own_profile_path() -> Path:
    """Where this machine's profile is kept."""
    from edgerun.paths import config_dir

    return config_dir() / "device.yaml"


def find_profile(name: str) -> DeviceProfile:
    """`this`: what `edgerun profile --device` wrote here; a name of those that come with edgerun; else a file's.
    NotFoundError, FormatError."""
    from edgerun.errors import NotFoundError
    from edgerun.paths import kind_of, user_path
    from edgerun.planning.device_profile import load_profile, shipped_profiles

    if name == THIS:
        if kind_of(own_profile_path()) != "file":
            raise NotFoundError("this machine was not measured yet: `edgerun profile --device` does")
        return load_profile(own_profile_path())
    shipped = shipped_profiles()
    if name in shipped:
        return load_profile(shipped[name])
    path = user_path(name)
    if kind_of(path) != "file":
        raise NotFoundError(
            f"{name}: no such file, and none of the profiles that there are: {', '.join(shipped)}, {THIS}"
        )
    return load_profile(path)
