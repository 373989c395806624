"""What ``pip install visrl`` brings, from the metadata of what is installed here: licences counted, and a bill of materials.

    python tests/studies/supply.py [--sbom visrl.cdx.json]

The bill is CycloneDX 1.5. Look it over for known faults with any auditor that reads it.
"""

import argparse
import importlib.metadata as metadata
import json
import re
from collections import Counter
from pathlib import Path

from packaging.requirements import Requirement

FAMILIES = (
    ("NVIDIA or proprietary", "nvidia|proprietary"), ("LGPL", "lesser|lgpl"), ("GPL", "gpl|general public"), ("MPL", "mpl|mozilla"),
    ("Apache 2.0", "apache"), ("BSD", "bsd"), ("MIT", "mit"), ("Python", "python|psf"), ("ISC or Unlicense", "isc|unlicense"),
)  # fmt: skip


def licence(about):
    """What a distribution says of its licence: the expression, else the classifiers, else the first line of the field."""
    if expression := about.get("License-Expression"):
        return expression
    found = [c.rpartition("::")[2].strip() for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    lines = (about.get("License") or "").strip().splitlines()
    return " / ".join(found) or (lines[0][:60] if lines else "not stated")


def brought(name, extras=(), found=None):
    """name -> distribution of everything that ``name`` needs here, itself included."""
    found = {} if found is None else found
    key = re.sub(r"[-_.]+", "-", name).lower()
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # of another platform
        return found
    if key in found:
        return found
    found[key] = distribution
    for text in distribution.requires or []:
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            brought(need.name, tuple(need.extras), found)
    return found


def family(said):
    return next((name for name, words in FAMILIES if re.search(words, said.lower())), "not stated")


def bill(found):
    components = [
        {
            "type": "library",
            "name": name,
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
            "licenses": [{"license": {"name": licence(one.metadata)}}],
        }
        for name, one in sorted(found.items())
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbom", type=Path)
    args = parser.parse_args()
    found = brought("visrl")
    del found["visrl"]
    counts = Counter(family(licence(one.metadata)) for one in found.values())
    print(f"{len(found)} distributions")
    for name, n in counts.most_common():
        few = sorted(key for key, one in found.items() if family(licence(one.metadata)) == name) if n < 6 else []
        print(f"{n:>5} {name}{': ' + ', '.join(few) if few else ''}")
    if args.sbom:
        args.sbom.write_text(json.dumps(bill(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
