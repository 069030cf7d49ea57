"Prints constraints.txt: the installed version of everything that settings.ini asks for, directly or not"
import shlex
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAD = """# Versions that were tested together, for: pip install -c constraints.txt .
# Made by tools/constraints.py from an environment that passes .ci/run"""


def wanted(requirement, extras):
    return not requirement.marker or any(requirement.marker.evaluate({'extra': extra}) for extra in {'', *extras})


def main():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(Path(__file__).parents[1]/'settings.ini', encoding='utf-8')
    todo = [Requirement(r) for key in ('requirements', 'dev_requirements') for r in shlex.split(cfg['DEFAULT'][key])]
    pins = {}
    while todo:
        requirement = todo.pop()
        found = distribution(requirement.name)
        name = canonicalize_name(requirement.name)
        if name not in pins or requirement.extras:
            pins[name] = found.version.split('+')[0]    # 2.13.0+cpu and 2.13.0 are one version to us
            todo += [r for r in map(Requirement, found.requires or []) if wanted(r, requirement.extras)]
    print(HEAD, *(f'{name}=={version}' for name, version in sorted(pins.items())), sep='\n')


if __name__ == '__main__': main()
