"Packaging shim: every value lives in settings.ini; edit there, not here."
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']


def words(key): return shlex.split(cfg.get(key) or '')


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    license_expression=cfg['license'], license_files=['LICENSE'], python_requires=f'>={cfg["min_python"]}',
    classifiers=['Framework :: Jupyter', 'Programming Language :: Python :: 3',
                 'Topic :: Multimedia :: Graphics :: 3D Modeling'],
    packages=find_packages(include=[cfg['lib_path'], f'{cfg["lib_path"]}.*']),
    package_data={cfg['lib_path']: ['prior_weights/**', '*.js', 'py.typed']},
    install_requires=words('requirements'),
    extras_require={name: words(f'{name}_requirements') for name in ('dev', 'ray', 'cuda', 'openvino')},
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    entry_points=dict(console_scripts=words('console_scripts'),
                      nbdev=[f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d']), zip_safe=False)
