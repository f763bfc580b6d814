"""Writes the bill of materials of the image, CycloneDX 1.6 as JSON: `python image/sbom.py IMAGE FILE`.

The image itself lists its contents (Python's and Debian's own records), so no registry is needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

INVENTORY = r"""
import json, platform, subprocess
from importlib.metadata import distributions
python = [(d.metadata["Name"], d.version, d.metadata.get("License-Expression") or next(
    (c.split(" :: ")[-1] for c in d.metadata.get_all("Classifier") or () if c.startswith("License :: ")), "")
) for d in distributions()]
line = "${Package}\t${Version}\t${Architecture}\n"
debian = subprocess.run(["dpkg-query", "--show", "--showformat", line], check=True, capture_output=True, text=True)
print(json.dumps({"python": sorted(set(python)), "debian": [l.split("\t") for l in debian.stdout.splitlines()],
                  "release": platform.freedesktop_os_release()["VERSION_ID"]}))
"""


def main(image: str, path: Path) -> None:
    """List the image's packages, write the file, validate it, and print the number of packages."""
    docker = os.environ.get("DOCKER", "docker")
    command = [docker, "run", "--rm", "--network=none", "--entrypoint=python", image, "-c", INVENTORY]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    name, _, tag = image.rpartition(":")
    described = Component(type=ComponentType.CONTAINER, name=name, version=tag)
    bom = Bom(components=[*python_packages(found), *debian_packages(found)])
    bom.metadata.component = described
    bom.register_dependency(described, bom.components)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"the bill of materials violates its schema: {wrong.data!r}")
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(found['python'])} Python packages, {len(found['debian'])} Debian packages")


def python_packages(found: dict[str, Any]) -> list[Component]:
    """Return the components in the Python environment."""
    return [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            licenses=[LicenseFactory().make_from_string(text)] if text else (),
            purl=PackageURL("pypi", None, name.lower().replace("_", "-"), version),
            bom_ref=f"pypi:{name}",
        )
        for name, version, text in found["python"]
    ]


def debian_packages(found: dict[str, Any]) -> list[Component]:
    """Return the components that Debian's package manager installed."""
    release = f"debian-{found['release']}"
    return [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=PackageURL("deb", "debian", name, version, {"arch": architecture, "distro": release}),
            bom_ref=f"deb:{name}:{architecture}",
        )
        for name, version, architecture in found["debian"]
    ]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
