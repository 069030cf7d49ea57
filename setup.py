"Packaging shim: every value lives in settings.ini; edit there, not here."
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
STATUS = ['Planning', 'Pre-Alpha', 'Alpha', 'Beta', 'Production/Stable', 'Mature', 'Inactive']    # PyPI's, from 1
EXTRAS = ['dev', 'ray', 'cuda', 'openvino', 'picture']


def words(key): return shlex.split(cfg.get(key) or '')


def classifiers():
    "What PyPI sorts by. The licence is no longer among it: it has a field of its own"
    number = int(cfg['status'])
    return [f'Development Status :: {number} - {STATUS[number - 1]}', 'Framework :: Jupyter',
            *(f'Intended Audience :: {who}' for who in ('Developers', 'Education', 'Science/Research')),
            f'Natural Language :: {cfg["language"]}', 'Operating System :: OS Independent',
            'Programming Language :: Python :: 3 :: Only',
            *(f'Programming Language :: Python :: {version}' for version in words('pythons')),
            'Topic :: Multimedia :: Graphics :: 3D Modeling', 'Topic :: Multimedia :: Graphics :: 3D Rendering',
            'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed']


def description():
    "The README, with whole addresses: on PyPI there is no file beside it"
    text = (root/'README.md').read_text(encoding='utf-8')
    raw = cfg['git_url'].replace('github.com', 'raw.githubusercontent.com')
    text = re.sub(r'src="(?!https?:)', f'src="{raw}/{cfg["branch"]}/', text)
    return re.sub(r'\]\((?!https?:|#)', f']({cfg["git_url"]}/blob/{cfg["branch"]}/', text)


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    keywords=cfg['keywords'].split(), author=cfg['author'], author_email=cfg['author_email'],
    license_expression=cfg['license'], license_files=['LICENSE'], python_requires=f'>={cfg["min_python"]}',
    project_urls=dict(Documentation=cfg['lib_url'], Source=cfg['git_url'], Issues=f'{cfg["git_url"]}/issues',
                      Changelog=f'{cfg["git_url"]}/blob/{cfg["branch"]}/CHANGELOG.md'),
    classifiers=classifiers(),
    packages=find_packages(include=[cfg['lib_path'], f'{cfg["lib_path"]}.*']),
    package_data={cfg['lib_path']: ['prior_weights/**', '*.js', 'py.typed']},
    install_requires=words('requirements'), extras_require={name: words(f'{name}_requirements') for name in EXTRAS},
    long_description=description(), long_description_content_type='text/markdown',
    entry_points=dict(console_scripts=words('console_scripts'),
                      nbdev=[f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d']), zip_safe=False)
