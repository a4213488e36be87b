"""A checkpoint fits the backbone or is refused, through whichever door it comes."""

import pytest
import torch
from helpers import cropr, shards_on_a_cpu, small_vit
from mmengine._strategy import FSDPStrategy
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict
from torch import nn
from torch.distributed.fsdp import FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from cropr_mm.checkpoint import load_every_parameter, read_checkpoint, resize_position_embedding, weights_of
from cropr_mm.engine import CroprFSDPStrategy, wrap_vit_blocks

PRUNING = dict(pruner=cropr(), rate=8)
PATCHES = dict(pruner=cropr('PatchSegAuxHead'), rate=8)


class Segmentor(nn.Module):
    def __init__(self, *args, classes=3, **settings):
        super().__init__()
        self.backbone = small_vit(*args, **settings)
        self.head = nn.Linear(16, classes)


def by_torch(model, trained, tmp_path):
    model.load_state_dict(trained.state_dict(), strict=False)


def by_mmengine(model, trained, tmp_path):
    load_state_dict(model, trained.state_dict())


def by_a_file(model, trained, tmp_path):
    """As load_from, --resume, mmseg's init_model and mmdet's init_detector do, from a model that DDP wrapped."""
    state = trained.state_dict()
    weights = type(state)({f'module.{name}': value for name, value in state.items()})
    weights._metadata = state._metadata  # mmengine's DDPStrategy saves names and metadata of the wrapper
    torch.save(dict(state_dict=weights, meta={}), tmp_path / 'w.pth')
    load_checkpoint(model, str(tmp_path / 'w.pth'), map_location='cpu')


def by_our_tools(model, trained, tmp_path):
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'w.pth')
    load_every_parameter(model, read_checkpoint(str(tmp_path / 'w.pth'))[0], 'w.pth:')


DOORS = [by_torch, by_mmengine, by_a_file, by_our_tools]
doors = pytest.mark.parametrize('load', DOORS)


@doors
@pytest.mark.parametrize('size', [48, (12, 48), (36, 16)])
def test_position_embeddings_are_resized(load, size, tmp_path):
    """(36, 16) has as many patches as 24 × 24, so that its length tells nothing."""
    trained, model = Segmentor(pruning=PRUNING), Segmentor(pruning=PRUNING, img_size=size)
    load(model, trained, tmp_path)
    ours, theirs = model.backbone, trained.backbone
    expected = resize_position_embedding(theirs.pos_embed, (6, 6), ours.grid, 1)
    assert torch.equal(ours.pos_embed, expected) and not torch.equal(ours.pos_embed[:, 1:37], theirs.pos_embed[:, 1:37])
    assert torch.equal(ours.blocks[3].mlp.fc1.weight, theirs.blocks[3].mlp.fc1.weight)
    assert torch.equal(ours.pruners['2'].queries, theirs.pruners['2'].queries)


@doors
def test_the_grid_that_a_checkpoint_records_is_believed(load, tmp_path):
    """Of 3 × 12 patches nobody would guess."""
    trained, model = Segmentor(img_size=(12, 48)), Segmentor(img_size=24)
    load(model, trained, tmp_path)
    expected = resize_position_embedding(trained.backbone.pos_embed, (3, 12), (6, 6), 1)
    assert torch.equal(model.backbone.pos_embed, expected)


def test_weights_without_a_record_that_fit_are_taken_as_they_are():
    trained, model = small_vit(img_size=(12, 48)), small_vit(img_size=(12, 48))
    model.load_state_dict(dict(trained.state_dict()))
    assert torch.equal(model.pos_embed, trained.pos_embed)


def test_an_embedding_of_an_unknown_grid_is_refused():
    weights = dict(small_vit(img_size=(12, 24)).state_dict())  # 18 patches
    with pytest.raises(ValueError, match=r'pos_embed \(1, 19, 16\) is neither a square grid nor 6×6 patches'):
        small_vit().load_state_dict(weights)


@doors
@pytest.mark.parametrize(
    'trained, settings, words',
    [
        (dict(arch=dict(embed_dim=32)), {}, r'of another shape: cls_token \[1, 1, 32\], expected \[1, 1, 16\]'),
        (dict(arch=dict(depth=7)), {}, r'left over: blocks.5.norm1.weight'),
        (dict(), dict(arch=dict(depth=7)), r'missing: blocks.5.norm1.weight'),
        (dict(final_norm=False), {}, r'missing: norm.weight, norm.bias'),
        (dict(), dict(patch_size=8), r'patch_embed.proj.weight \[16, 3, 4, 4\], expected \[16, 3, 8, 8\]'),
        (
            dict(pruning=PATCHES),
            dict(pruning=PATCHES, img_size=48),
            r'pruners.0.queries \[36, 16\], expected \[144, 16\].*Pruners with a query for each patch belong to one',
        ),
        (
            dict(pruning=dict(pruner=cropr(mlp=False), rate=8)),
            dict(pruning=PRUNING),
            r'missing: pruners.0.mlp.fc1.bias',
        ),
    ],
    ids=['width', 'shallower', 'deeper', 'norm', 'patches', 'queries', 'half a pruner'],
)
def test_what_does_not_fit_is_an_error(load, trained, settings, words, tmp_path):
    with pytest.raises(
        ValueError, match=rf'backbone: the checkpoint does not fit the CroprViT of the config .*{words}'
    ):
        load(Segmentor(**settings), Segmentor(**trained), tmp_path)


@pytest.mark.parametrize('load', DOORS[:3])
def test_new_heads_are_mmengines_business(load, tmp_path):
    """Fine-tuning: other classes. An auxiliary head is a head, too."""
    trained = Segmentor(pruning=PRUNING)
    trained.head = nn.Conv2d(1, 1, 1)
    model = Segmentor(pruning=dict(pruner=cropr(num_classes=7), rate=8))
    if load is by_torch:  # which tells shapes that differ
        with pytest.raises(RuntimeError, match=r'size mismatch for head\.weight'):
            load(model, trained, tmp_path)
    else:
        load(model, trained, tmp_path)
        assert model.head.weight.shape == (3, 16)
    assert torch.equal(model.backbone.pruners['1'].queries, trained.backbone.pruners['1'].queries)


@pytest.mark.parametrize('names', [[], ['backbone.cls_token', 'backbone.pos_embed', 'backbone.layers.0.ln1.weight']])
def test_of_another_backbone_nothing_is_taken(names, caplog):
    """A checkpoint of a ResNet's or another ViT's detector gives its heads, and says so."""
    model = Segmentor(pruning=PRUNING)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    head = dict(nn.Linear(16, 3).state_dict())
    load_state_dict(model, {**{f'head.{k}': v for k, v in head.items()}, **dict.fromkeys(names, torch.ones(1, 1, 16))})
    assert torch.equal(model.head.weight, head['weight'])
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert not model.backbone.pruners_are_new


# --- pruners that a checkpoint lacks --------------------------------------------------------------------------


@pytest.mark.parametrize('load', DOORS[:3])
def test_new_pruners_are_for_training(load, tmp_path):
    trained, model = Segmentor(), Segmentor(pruning=PRUNING)
    load(model, trained, tmp_path)
    vit, images = model.backbone, torch.randn(1, 3, 24, 24)
    with pytest.raises(RuntimeError, match='the checkpoint that was loaded has no pruners, and they have not trained'):
        vit.eval()(images)
    vit.train()(images)
    vit.eval()(images)


@pytest.mark.parametrize(
    'pruning', [None, dict(PRUNING, rate=0), dict(pruner=dict(type='VariancePruner'), rate=8)], ids=repr
)
def test_a_model_without_weights_to_prune_by_needs_none(pruning):
    model = small_vit(pruning=pruning)
    load_state_dict(model, small_vit().state_dict())
    model.eval()(torch.randn(1, 3, 24, 24))


def test_pruners_that_come_later_are_no_longer_new():
    model = small_vit(pruning=PRUNING)
    load_state_dict(model, small_vit().state_dict())
    load_state_dict(model, small_vit(pruning=PRUNING).state_dict())
    model.eval()(torch.randn(1, 3, 24, 24))


def test_our_tools_refuse_a_model_that_stays_random(tmp_path):
    with pytest.raises(
        ValueError, match=r'w.pth: does not fit the model of the config; missing: backbone.pruners.0.qu'
    ):
        by_our_tools(Segmentor(pruning=PRUNING), Segmentor(), tmp_path)
    trained = Segmentor()
    del trained.head
    with pytest.raises(ValueError, match=r'missing: head.weight, head.bias'):
        by_our_tools(Segmentor(), trained, tmp_path)
    by_our_tools(Segmentor(), Segmentor(pruning=PRUNING), tmp_path)  # what is left over does not matter


def test_metadata_comes_along():
    state = small_vit(img_size=(12, 48)).state_dict()
    assert weights_of(dict(state_dict=state, meta={}), 'w.pth')._metadata['']['grid'] == (3, 12)


def test_pruners_alone_are_loaded():
    trained, model = Segmentor(pruning=PRUNING), Segmentor(pruning=PRUNING)
    before = model.backbone.blocks[0].mlp.fc1.weight.clone()
    model.backbone.pruners_are_new = True
    pruners = {name: value for name, value in trained.state_dict().items() if '.pruners.' in name}
    load_state_dict(model, pruners)
    assert torch.equal(model.backbone.pruners['2'].queries, trained.backbone.pruners['2'].queries)
    assert torch.equal(model.backbone.blocks[0].mlp.fc1.weight, before) and not model.backbone.pruners_are_new
    del pruners['backbone.pruners.1.queries']
    with pytest.raises(ValueError, match=r'does not fit the CroprViT of the config \(missing: pruners.1.queries\)'):
        load_state_dict(model, pruners)


def test_a_model_that_another_backbones_checkpoint_left_random_predicts_nothing():
    foreign = {'backbone.layer1.weight': torch.zeros(1), 'backbone.cls_token': torch.zeros(1, 1, 16)}
    model, images = Segmentor(), torch.randn(1, 3, 24, 24)
    load_state_dict(model, {'head.weight': torch.zeros(3, 16)})
    model.eval().backbone(images)  # nobody meant that one for the backbone
    load_state_dict(model, foreign)
    with pytest.raises(RuntimeError, match='is of another backbone, and this one has not trained'):
        model.backbone(images)
    model.train().backbone(images)
    model.eval().backbone(images)
    loaded = Segmentor()
    loaded.load_state_dict(model.state_dict())
    load_state_dict(loaded, foreign)
    loaded.eval().backbone(images)


@pytest.mark.parametrize(
    'content, words',
    [
        (dict(state_dict=[1]), 'state_dict holds list; a dict of tensors'),
        ({1: torch.zeros(1)}, 'holds no weights'),
        ([torch.zeros(1)], 'holds list; a dict of tensors'),
    ],
)
def test_files_of_another_shape_are_named(content, words, tmp_path):
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=rf'w.pth: {words}'):
        read_checkpoint(str(tmp_path / 'w.pth'))


def test_what_a_file_has_beside_weights_may_be_of_any_kind(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=5, ema_state_dict=[1]), tmp_path / 'w.pth')
    weights, meta = read_checkpoint(str(tmp_path / 'w.pth'))
    assert list(weights) == ['a'] and meta == {}
    with pytest.raises(ValueError, match=r'w.pth: holds no moving average'):
        read_checkpoint(str(tmp_path / 'w.pth'), ema=False)


@pytest.fixture
def sharded():
    """Under FSDP, whose names some of PyTorch's lists have and others do not."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    settings = dict(auto_wrap_policy=wrap_vit_blocks, use_orig_params=True, device_id=torch.device('cpu'))
    model = FSDP(Segmentor(pruning=PRUNING), **settings)
    FSDP.set_state_dict_type(
        model, StateDictType.FULL_STATE_DICT, state_dict_config=FullStateDictConfig(offload_to_cpu=False)
    )
    yield model
    torch.distributed.destroy_process_group()


@shards_on_a_cpu
def test_a_sharded_model_takes_a_dense_checkpoint_and_names_what_lacks(sharded):
    dense = Segmentor()
    sharded.load_state_dict(dense.state_dict(), strict=False)
    assert sharded.module.backbone.pruners_are_new
    with FSDP.summon_full_params(sharded):
        assert torch.equal(sharded.module.backbone.norm.weight, dense.backbone.norm.weight)
    for name, words in (
        ('blocks.2.mlp.fc1.bias', r'missing: blocks.2.mlp.fc1.bias'),
        ('norm.bias', 'missing: norm.bias'),
    ):
        state = dense.state_dict()
        del state[f'backbone.{name}']
        with pytest.raises(ValueError, match=rf'^backbone: the checkpoint does not fit .*\({words}\)'):
            sharded.load_state_dict(state, strict=False)


@shards_on_a_cpu
def test_a_sharded_models_file_has_its_grid(sharded, monkeypatch):
    monkeypatch.setattr(FSDPStrategy, 'model_state_dict', lambda self: sharded.state_dict())
    state = CroprFSDPStrategy.model_state_dict(CroprFSDPStrategy.__new__(CroprFSDPStrategy))
    assert state._metadata['backbone']['grid'] == (6, 6) and '' in state._metadata


@shards_on_a_cpu
def test_a_sharded_model_reads_the_grid_of_a_file(sharded):
    """4 × 9 patches are as many as 6 × 6: without the grid they would be loaded as they are."""
    dense = Segmentor(img_size=(16, 36))
    state = dense.state_dict()
    wrapped = type(state)((f'module.{name}', value) for name, value in state.items())
    wrapped._metadata = {f'module.{name}'.rstrip('.'): entry for name, entry in state._metadata.items()}
    strategy = CroprFSDPStrategy.__new__(CroprFSDPStrategy)
    strategy.model, strategy.logger = sharded, MMLogger.get_current_instance()
    for weights in (state, wrapped):
        CroprFSDPStrategy.load_model_state_dict(strategy, weights)
        expected = resize_position_embedding(dense.backbone.pos_embed, (4, 9), (6, 6), 1)
        with FSDP.summon_full_params(sharded):
            assert torch.equal(sharded.module.backbone.pos_embed, expected)
