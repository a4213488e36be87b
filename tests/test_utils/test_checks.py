"""A type in a config is a name, a name behind a scope, or the class."""

import pytest
from mmengine.config import ConfigDict
from mmengine.model import PretrainedInit

from cropr_mm import CroprViT
from cropr_mm.utils.checks import is_type


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
