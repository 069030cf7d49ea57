"Writes README.md from nbs/index.ipynb, without Quarto"
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parents[1]


def main():
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    nb.cells = [cell for cell in nb.cells if not re.match(r'#\|\s*hide\b', cell.source)]
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
        else:    # links between notebooks are written as seen from nbs/
            cell.source = re.sub(r'\]\((?!https?:|#|\.\./)([^)]+)', r'](nbs/\1', cell.source).replace('](../', '](')
            cell.source = cell.source.replace('src="images/', 'src="nbs/images/')
    nb.metadata['language_info'] = {'name': 'python'}
    body, resources = MarkdownExporter().from_notebook_node(nb,
        resources=dict(unique_key='index', output_files_dir='index_files'))
    shutil.rmtree(root/'index_files', ignore_errors=True)
    for name, data in resources['outputs'].items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(data)
    (root/'README.md').write_text(re.sub(r'\n{3,}', '\n\n', body).strip() + '\n', encoding='utf-8')


if __name__ == '__main__': main()
