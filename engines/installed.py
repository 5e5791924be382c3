"""Which packages does this interpreter have, of which version? python -m engines.installed '{...}'; imports none.

The argument is JSON, module → names under which it may be distributed; the answer, `installed`'s, one line of JSON.
"""

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence


def installed(modules: Mapping[str, Sequence[str]]) -> dict[str, list[str] | None]:
    """Module → the versions of its distributions that are here ([]: it came without one), None where it is missing."""
    return {
        module: [*_versions(distributions)] if importlib.util.find_spec(module) else None
        for module, distributions in modules.items()
    }


def _versions(distributions: Sequence[str]) -> set[str]:
    found = set()
    for name in distributions:
        try:
            found.add(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    print(json.dumps(installed(json.loads(sys.argv[1]))))
