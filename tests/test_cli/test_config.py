"""What is wrong with a config or its library is named."""

import argparse

import pytest

from cropr_mm.cli.config import load_config


def arguments(config, **settings):
    values = dict(config=str(config), work_dir=None, cfg_options=None, launcher='none', local_rank=0)
    return argparse.Namespace(**{**values, **settings})


def test_a_misspelt_config_is_answered_with_similar_ones(tmp_path):
    (tmp_path / 'fcn_cropr-vit_sample.py').write_text('a = 1')
    (tmp_path / 'unrelated.py').write_text('a = 1')
    with pytest.raises(FileNotFoundError, match=r'fcn_croper-vit_sample.*did you mean .*fcn_cropr-vit_sample.py\?'):
        load_config(arguments(tmp_path / 'fcn_croper-vit_sample.py'))
    with pytest.raises(FileNotFoundError, match=r'fcn_cropr-vit_sample.py.: no such file$'):
        load_config(arguments(tmp_path / 'no_folder' / 'fcn_cropr-vit_sample.py'))


def test_options_of_the_command_line_win(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text("work_dir = 'there'\nmodel = dict(depth=1)")
    assert load_config(arguments(file)).work_dir == 'there'
    cfg = load_config(arguments(file, work_dir='here', cfg_options={'model.depth': 2}))
    assert (cfg.work_dir, cfg.model.depth) == ('here', 2)
    file.write_text('')
    assert load_config(arguments(file)).work_dir == 'work_dirs/mine'


def test_a_missing_library_is_named(tmp_path):
    (tmp_path / 'mine.py').write_text("default_scope = 'mmnothing'")
    with pytest.raises(ModuleNotFoundError, match=r"default_scope='mmnothing'.*pip install mmnothing"):
        load_config(arguments(tmp_path / 'mine.py'))


def test_what_a_library_itself_lacks_is_named(tmp_path, monkeypatch):
    """mmpretrain imports torchvision and does not declare it."""
    library = tmp_path / 'mmhalf'
    library.mkdir()
    (library / '__init__.py').touch()
    (library / 'utils.py').write_text('import a_module_that_is_not_there')
    (tmp_path / 'mine.py').write_text("default_scope = 'mmhalf'")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"'mmhalf'.* and that the module a_module_that_is_not_there"):
        load_config(arguments(tmp_path / 'mine.py'))
