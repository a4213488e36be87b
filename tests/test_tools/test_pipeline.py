"""Train, test, look: the tools one after the other, on both libraries, and the demo that does all of it."""

import json
import pickle

import pytest

from .conftest import CONFIGS, few_iterations

CASES = {'mmseg': 'fcn_cropr-vit_sample', 'mmdet': 'mask-rcnn_cropr-vit_sample'}


@pytest.mark.slow
@pytest.mark.parametrize('library', CASES)
def test_from_training_to_pictures(library, data_folder, run_tool, capsys):
    pytest.importorskip(library)
    config, options = CONFIGS / f'{CASES[library]}.py', few_iterations(2)
    run_tool('train', config, '--work-dir', 'run', *options)
    checkpoint = data_folder / 'run' / 'iter_2.pth'
    assert checkpoint.is_file()

    out = 'predictions' if library == 'mmseg' else 'predictions.pkl'
    run_tool('test', config, checkpoint, '--work-dir', 'test', '--out', out, '--show-dir', 'painted', *options)
    assert len([file for file in (data_folder / 'painted').rglob('*.*') if file.suffix in ('.png', '.jpg')]) == 6
    if library == 'mmseg':
        assert len(list((data_folder / out).iterdir())) == 6
    else:
        assert len(pickle.loads((data_folder / out).read_bytes())) == 6

    run_tool('analyze_routing', config, checkpoint, '--json', 'routing.json', '--against', config, checkpoint, *options)
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
    assert kept == pytest.approx(6 * 23)  # 24 tokens, one of which is the class token

    run_tool('visualize_tokens', config, checkpoint, '--out', 'tokens.png', '--indices', 0, 5, *options)
    image = next((data_folder / 'data' / 'sample' / 'images' / 'validation').iterdir())
    run_tool('visualize_tokens', config, checkpoint, '--out', 'photo.png', '--image', image, *options)
    for name in ('tokens.png', 'photo.png'):
        assert (data_folder / name).read_bytes().startswith(b'\x89PNG')
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


@pytest.mark.slow
@pytest.mark.parametrize('task, scores', [('seg', ['miou']), ('det', ['bbox_map', 'segm_map'])])
def test_demo(task, scores, sample_data, tmp_path, run_tool, monkeypatch, capsys):
    pytest.importorskip('mmseg' if task == 'seg' else 'mmdet')
    monkeypatch.chdir(tmp_path)
    arguments = [task, '--data-root', sample_data, '--work-dir', 'out', '--rounds', 2, '--pictures', 1]
    for _ in range(2 if task == 'seg' else 1):  # a second demo replaces the first
        run_tool('demo', *arguments, *few_iterations(2))
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    for key in scores:
        assert 0 <= summary[key] <= 100
    assert summary['tokens_per_block'] == [145, 128, 104, 88, 64, 48, 24, 145]
    assert summary['tokens_pruned_ratio'] == pytest.approx(121 / 145)
    for key in ('images_per_second', 'images_per_second_dense', 'speedup'):
        assert summary[key] > 0
    assert len(summary['pictures']) == 2
    for picture in summary['pictures']:
        assert (tmp_path / 'out' / 'pictures' / picture.rsplit('/', 1)[1]).is_file()
    assert f'{summary["speedup"]:.2f}×' in capsys.readouterr().out
