"Prints constraints.txt: the installed version of everything that settings.ini asks for, directly or not"
import shlex
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAD = """# Versions that were tested together, for: pip install -c constraints.txt .
# Made by tools/constraints.py from an environment that passes .ci/run"""


def settings():
    "The section of settings.ini"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(Path(__file__).parents[1]/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def requirements(*keys):
    "The requirements in those lines of settings.ini"
    return [r for key in keys for r in shlex.split(settings()[key])]


def wanted(requirement, extras):
    "Whether this Python and these extras need a requirement"
    return not requirement.marker or any(requirement.marker.evaluate({'extra': extra}) for extra in {'', *extras})


def closure(names):
    "Name → installed distribution, of requirements and of everything that they need"
    todo, found = [Requirement(name) for name in names], {}
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras: continue
        found[name] = distribution(requirement.name)
        todo += [r for r in map(Requirement, found[name].requires or []) if wanted(r, requirement.extras)]
    return found


def main():
    found = closure(requirements('requirements', 'dev_requirements'))
    # 2.13.0+cpu and 2.13.0 are one version to us
    pins = {name: dist.version.split('+')[0] for name, dist in found.items()}
    print(HEAD, *(f'{name}=={version}' for name, version in sorted(pins.items())), sep='\n')


if __name__ == '__main__': main()
