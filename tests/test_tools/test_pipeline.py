"""Train, time, draw (as the demo does), test, look: the tools one after the other, on both libraries."""

import json
import pickle
import shlex
import shutil
import subprocess

import pytest

from .conftest import CONFIGS, ROOT, few_iterations

CASES = {'mmseg': ('demo', 'fcn_cropr-vit_sample'), 'mmdet': ('demo-det', 'mask-rcnn_cropr-vit_sample')}


def commands(target):
    """Tool and arguments of each command of a target of the Makefile."""
    command = ['make', '-n', '--no-print-directory', '-C', str(ROOT), target, 'PY=python']
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    calls = [line.replace('$(cat ', '').replace('last_checkpoint)', 'iter_2.pth') for line in lines]
    words = [shlex.split(call) for call in calls if call.startswith('python tools/')]
    return {word[1].split('/')[-1].split('.')[0]: word[2:] for word in words}


@pytest.mark.slow
@pytest.mark.parametrize('library', CASES)
@pytest.mark.skipif(not shutil.which('make'), reason='reads the commands of the Makefile')
def test_from_training_to_pictures(library, data_folder, run_tool, capsys):
    """What `make demo` types works, cut to two iterations, and so do the other tools on its checkpoint."""
    pytest.importorskip(library)
    target, name = CASES[library]
    config, options = CONFIGS / f'{name}.py', few_iterations(2)
    demo = commands(target)
    assert list(demo) == ['make_sample_data', 'train', 'benchmark', 'visualize_tokens', 'report']
    (data_folder / 'configs').symlink_to(ROOT / 'configs')
    run_tool('train', *demo['train'], *options)
    assert capsys.readouterr().out.endswith(f'written: work_dirs/{target}/train\n')
    run_tool('benchmark', *demo['benchmark'], '--rounds', 1, '--batch-size', 2)
    said = capsys.readouterr().out
    assert 'images/s' in said and 'dense' in said and 'head' in said and '145 128 104 88 64 48 24 145' in said
    run_tool('visualize_tokens', *demo['visualize_tokens'], *options)
    capsys.readouterr()
    run_tool('report', *demo['report'], '--rounds', 1, '--batch-size', 2, *options)
    page = data_folder / 'work_dirs' / target / 'report.html'
    assert capsys.readouterr().out.splitlines()[-1] == f'written: {page.resolve()}'
    assert page.stat().st_size < 5e6
    checkpoint = data_folder / 'work_dirs' / target / 'train' / 'iter_2.pth'
    assert checkpoint.is_file()

    out = 'predictions' if library == 'mmseg' else 'predictions.pkl'
    run_tool('test', config, checkpoint, '--work-dir', 'test', '--out', out, '--show-dir', 'painted', *options)
    assert len([file for file in (data_folder / 'painted').rglob('*.*') if file.suffix in ('.png', '.jpg')]) == 6
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == [f'written: {folder}' for folder in (out, 'painted', 'test')]
    if library == 'mmseg':
        assert len(list((data_folder / out).iterdir())) == 6
    else:
        assert len(pickle.loads((data_folder / out).read_bytes())) == 6

    run_tool('analyze_routing', config, checkpoint, '--json', 'routing.json', '--against', config, checkpoint, *options)
    assert capsys.readouterr().out.endswith('written: routing.json\n')
    routing = json.loads((data_folder / 'routing.json').read_text())
    assert routing['overlap'] == {str(block): 1.0 for block in range(6)}
    for group in ('object', 'background'):
        shares = routing[group]
        assert len(shares) == 8
        assert shares[0] == shares[-1] == 1
        assert shares[:-1] == sorted(shares[:-1], reverse=True)
    tokens = routing['object_tokens'], routing['background_tokens']
    assert sum(tokens) == 6 * 144
    kept = sum(share * count for share, count in zip((routing['object'][-2], routing['background'][-2]), tokens))
    assert kept == pytest.approx(6 * 23)  # 24 tokens, one of which is [CLS]

    image = next((data_folder / 'data' / 'sample' / 'images' / 'validation').iterdir())
    run_tool('visualize_tokens', config, checkpoint, '--out', 'photo.png', '--image', image, *options)
    for picture in (checkpoint.parents[1] / 'tokens.png', data_folder / 'photo.png'):
        assert picture.read_bytes().startswith(b'\x89PNG')
    (data_folder / 'notes.md').write_text('no image')
    for file, words in (
        ('notes.md', r"'notes.md': no image that can be read \("),
        ('gone.jpg', r"'gone.jpg': no such"),
    ):
        with pytest.raises(SystemExit, match=rf'^visualize_tokens.py: error: --image {words}'):
            # before a model is built, or its checkpoint read
            run_tool('visualize_tokens', config, 'gone.pth', '--image', file, *options)
    with pytest.raises(SystemExit, match=r'--indices 6: the test set has images 0 to 5'):
        run_tool('visualize_tokens', config, checkpoint, '--indices', 6, *options)
    capsys.readouterr()
