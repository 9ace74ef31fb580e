"""Which Linux for Tegra, and so which JetPack, a Jetson runs."""

import re
from pathlib import Path

RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)")

# From jtop/core/jetson_variables.py of github.com/rbonghi/jetson_stats.
JETPACKS = {
    "R32.6.1": "4.6",
    "R32.7.1": "4.6.1",
    "R32.7.2": "4.6.2",
    "R32.7.3": "4.6.3",
    "R32.7.4": "4.6.4",
    "R32.7.5": "4.6.5",
    "R32.7.6": "4.6.6",
}


def l4t_version(path: Path) -> str:
    """The version in a file such as /etc/nv_tegra_release.

    Returns:
        Such as "R32.7.1 (JetPack 4.6.1)", without the JetPack where it is not known which; "unknown" and why if the file does
        not tell.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"unknown: {path} cannot be read: {error.strerror}"
    found = RELEASE.search(text)
    if found is None:
        return f"unknown: {path} does not begin like '# R32 (release), REVISION: 7.1'"
    version = "R{}.{}".format(*found.groups())
    return f"{version} (JetPack {JETPACKS[version]})" if version in JETPACKS else version
