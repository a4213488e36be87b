"""What a type names, and whether values are what their keys expect."""

import pytest
from mmengine.config import ConfigDict
from mmengine.model import PretrainedInit

from cropr_mm import CroprViT
from cropr_mm.utils.checks import check_flag, check_integer, check_number, is_type


class Child(CroprViT):
    pass


@pytest.mark.parametrize('kind', ['CroprViT', 'mmseg.CroprViT', 'cropr_mm.models.cropr_vit.CroprViT', CroprViT, Child])
@pytest.mark.parametrize('holder', [dict, ConfigDict])
def test_all_ways_to_write_it(kind, holder):
    assert is_type(holder(type=kind), 'Pretrained', 'CroprViT')


@pytest.mark.parametrize(
    'settings', [None, 'CroprViT', {}, dict(type=None), dict(type='CroprViT.x'), dict(type='MyCroprViT'),
                 dict(type=PretrainedInit), [dict(type='CroprViT')]]
)  # fmt: skip
def test_anything_else_is_not_it(settings):
    assert not is_type(settings, 'CroprViT')


@pytest.mark.parametrize(
    'bounds, valid, invalid, words',
    [
        (dict(least=0, most=1), (0, 1, 0.5), (-0.1, 1.1), 'a number of 0 or more and at most 1'),
        (dict(above=0, most=1), (1e-9, 1), (0, 2), 'a number above 0 and at most 1'),
        (dict(least=0, below=1), (0, 0.999), (1, -1), 'a number of 0 or more and below 1'),
        ({}, (-5, 1e9), (), 'a number'),
    ],
)
def test_numbers_within_bounds_pass_and_others_are_named(bounds, valid, invalid, words):
    assert [check_number('a.b', value, **bounds) for value in valid] == list(valid)
    for value in (*invalid, True, None, '1', float('nan'), float('inf')):
        with pytest.raises(ValueError, match=rf'^a\.b={value!r}; {words} is expected$'):
            check_number('a.b', value, **bounds)


@pytest.mark.parametrize(
    'bounds, valid, invalid, words',
    [
        ({}, (1, 10**9), (0, -1), 'a positive integer'),
        (dict(least=0), (0, 7), (-1,), 'an integer of 0 or more'),
        (dict(least=2, most=4), (2, 4), (1, 5), 'an integer from 2 to 4'),
    ],
)
def test_integers_within_bounds_pass_and_others_are_named(bounds, valid, invalid, words):
    assert [check_integer('n', value, **bounds) for value in valid] == list(valid)
    for value in (*invalid, True, 2.0, '2', None):
        with pytest.raises(ValueError, match=rf'^n={value!r}; {words} is expected$'):
            check_integer('n', value, **bounds)


def test_a_flag_is_true_or_false():
    assert check_flag('deploy', False) is False
    with pytest.raises(ValueError, match=r'^deploy=1; True or False is expected$'):
        check_flag('deploy', 1)
