"""The table of speeds on a GPU, rehearsed: every row is built and counted."""

import json


def test_every_row_is_rehearsed(run_tool, tmp_path, capsys):
    run_tool('gpu_tables', '--dry-run', '--json', tmp_path / 'gpu.json')
    report = json.loads((tmp_path / 'gpu.json').read_text())
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(report) == 13
    assert last == f'written: {tmp_path / "gpu.json"}'
    for row in report:
        figures = row['variants']
        assert set(figures) == {'dense', 'difficulty', 'three stages'}
        assert 'images_per_second' not in figures['dense']
        tokens = {name: figure['tokens_per_block'] for name, figure in figures.items()}
        assert tokens['three stages'][:6] == tokens['dense'][:6] and len(set(tokens['three stages'])) == 4
        assert tokens['difficulty'][-2] < tokens['dense'][0] == tokens['difficulty'][-1]


def test_figures_become_a_line_of_the_table(run_tool, monkeypatch, tmp_path, capsys):
    def measure(models, batch, setting):
        figure = dict(images_per_second=20.0, ratio_to_dense=1.0, spread=0.01, flops_limit=1.0, gflops=1.0)
        return {name: dict(figure, ratio_to_dense=1.25, spread=0.13, flops_limit=1.7) for name in models} | {
            'dense': figure
        }

    monkeypatch.setattr('cropr_mm.benchmark.measure.measure', measure)
    module = run_tool('gpu_tables', '--dry-run')
    line = module['line'](module['ROWS'][2], measure(['dense', 'three stages'], None, None))
    assert line == '| 512², batch 8 | CUDA graph | 20 | 1.25× (spread 13%) | 1.70 |'
