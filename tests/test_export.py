"""Exported files: what they say is what mmsegmentation, mmdetection and the definition of a sort say."""

import pytest
import torch
from helpers import PRUNERS, SMALL, liven
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import digit_version
from torch import nn

from cropr_mm import export as exporting
from cropr_mm.benchmark.variants import TRAINING_FREE
from cropr_mm.export import OLDEST, Exportable, compare, export

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version(OLDEST), reason=f'exports need PyTorch {OLDEST}'
)
NORMALISE = dict(mean=[120.0, 110, 100], std=[60.0, 55, 50], bgr_to_rgb=True)


def build(scope, config):
    DefaultScope.get_instance(f'export-{scope}-{id(config)}', scope_name=scope)
    model = liven(MODELS.build(ConfigDict(config))).eval()
    model.backbone.pruners_are_new = False
    return model


def backbone(family='vit', pruner='difficulty', plan=None, depth=5, **more):
    reducers = {**PRUNERS, **TRAINING_FREE}
    pruning = dict(pruner=reducers[pruner], **(plan or dict(rate=7, round_to=1)))
    arch = dict(SMALL[family], depth=depth)
    return dict(type='CroprViT', arch=arch, img_size=24, patch_size=4, pruning=pruning, **more)


def segmentor(**more):
    pytest.importorskip('mmseg')
    head = dict(type='mmseg.FCNHead', in_channels=16, channels=16, in_index=0, num_convs=0, concat_input=False,
                num_classes=3, norm_cfg=None)  # fmt: skip
    neck = dict(type='TokenReinsertion')
    if more.get('plan', {}).get('fusion') == 'logits':
        neck, head = dict(neck, num_classes=3), dict(type='LogitFusionHead', head=head)
    return build('mmseg', dict(
        type='mmseg.EncoderDecoder', data_preprocessor=dict(type='mmseg.SegDataPreProcessor', **NORMALISE),
        backbone=backbone(**more), neck=neck, decode_head=head, test_cfg=dict(mode='whole'),
    ))  # fmt: skip


def detector(kind):
    pytest.importorskip('mmdet')
    anchors = dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8])
    coder = dict(type='DeltaXYWHBBoxCoder')
    shared = dict(
        data_preprocessor=dict(type='DetDataPreprocessor', **NORMALISE), backbone=backbone(),
        neck=[dict(type='TokenReinsertion'),
              dict(type='SimpleFeaturePyramid', in_channels=16, out_channels=8, in_stride=4, strides=[4, 8])],
    )  # fmt: skip
    if kind == 'RetinaNet':
        head = dict(type='RetinaHead', num_classes=2, in_channels=8, stacked_convs=1, feat_channels=8,
                    anchor_generator=anchors, bbox_coder=coder)  # fmt: skip
        return build('mmdet', dict(type=kind, bbox_head=head, test_cfg=dict(nms_pre=10), **shared))
    extractor = dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7), out_channels=8,
                     featmap_strides=[4, 8])  # fmt: skip
    roi = dict(type='StandardRoIHead', bbox_roi_extractor=extractor,
               bbox_head=dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=8, num_classes=2,
                              bbox_coder=coder))  # fmt: skip
    rpn = dict(type='RPNHead', in_channels=8, feat_channels=8, anchor_generator=anchors, bbox_coder=coder)
    return build(
        'mmdet', dict(type=kind, rpn_head=rpn, roi_head=roi, train_cfg=None, test_cfg=dict(rpn={}, rcnn={}), **shared)
    )


def photos(count, height=24, width=32):
    """Smooth images of whole grey levels."""
    coarse = torch.rand(count, 3, height // 8, width // 8) * 255
    return nn.functional.interpolate(coarse, (height, width), mode='bilinear').round()


def run(file, images):
    """The outputs of a file, loaded anew."""
    if file.suffix == '.pt2':
        return torch.export.load(file).module()(images)
    runtime = pytest.importorskip('onnxruntime')
    session = runtime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    return [torch.from_numpy(x) for x in session.run(None, {session.get_inputs()[0].name: images.numpy()})]


@pytest.mark.parametrize(
    'suffix, options',
    [
        ('.pt2', dict()),
        ('.onnx', dict(pruner='variance')),
        ('.onnx', dict(family='eva02', pruner='multi')),
        ('.onnx', dict(family='dinov2', pruner='patch')),
        ('.onnx', dict(family='dinov3')),
        ('.onnx', dict(family='eva02', window_size=3, global_blocks=[4])),
        ('.onnx', dict(pruner='attention')),
        ('.onnx', dict(pruner='tome')),
        ('.onnx', dict(pruner='algm', plan=dict(keep={0: 0.5, 2: 0.14}))),
        ('.onnx', dict(pruner='expedit', plan=dict(keep={1: 0.3}))),
        ('.onnx', dict(plan=dict(rate=7, fusion='logits'))),
    ],
    ids=str,
)
def test_a_segmentor_labels_as_mmsegmentation_does(options, suffix, tmp_path):
    if suffix == '.onnx':
        pytest.importorskip('onnxruntime')
    model, file = segmentor(**options), tmp_path / f'model{suffix}'
    report = export(Exportable(model), photos(2), file)
    assert report.share == 0 and report.operators and [path.name for path in tmp_path.iterdir()] == [file.name]
    for count in (1, 3):
        images = photos(count)
        (labels,) = run(file, images)
        samples = model.test_step(dict(inputs=list(images.to(torch.uint8)), data_samples=None))
        expected = torch.cat([sample.pred_sem_seg.data for sample in samples])
        assert labels.dtype == torch.int64 and torch.equal(labels, expected) and len(labels.unique()) > 1


@pytest.mark.parametrize(
    'suffix, options',
    [
        ('.onnx', dict()),
        ('.pt2', dict(family='eva02', plan=dict(keep={0: 0.8, 1: 0.3}, round_to=4))),
        ('.onnx', dict(family='dinov3', plan=dict(target_ratio=0.6), out_indices=[1, 3])),
        ('.pt2', dict(plan=dict(rate=7, round_to=1, fusion='logits'))),
    ],
    ids=str,
)
def test_of_any_size_a_segmentor_labels_as_mmsegmentation_does(options, suffix, tmp_path):
    """Larger and smaller, wider and higher, of whole patches and not, and so small that a pruner prunes nothing."""
    if suffix == '.onnx':
        pytest.importorskip('onnxruntime')
    model, file = segmentor(depth=4, **options), tmp_path / f'model{suffix}'
    report = export(Exportable(model), photos(2, 24, 24), file, open_size=True)
    assert report.share == 0 and not {'If', 'Loop', 'NonZero'} & set(report.operators)
    file = exporting.load_export(file)
    assert file.size == (None, None)
    for count, height, width in [(2, 24, 24), (1, 56, 40), (3, 16, 48), (2, 45, 30), (1, 8, 12)]:
        images = photos(count, height, width)
        (labels,) = file.run(images)
        samples = model.test_step(dict(inputs=list(images.to(torch.uint8)), data_samples=None))
        assert torch.equal(labels, torch.cat([sample.pred_sem_seg.data for sample in samples])), (height, width)


def test_logits_are_those_before_the_labels(tmp_path):
    model, images = segmentor(), photos(2)
    export(Exportable(model, 'logits'), images, tmp_path / 'model.pt2')
    (logits,) = run(tmp_path / 'model.pt2', images)
    samples = model.test_step(dict(inputs=list(images.to(torch.uint8)), data_samples=None))
    expected = torch.stack([sample.seg_logits.data for sample in samples])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'kind, suffix, open_size',
    [('RetinaNet', '.onnx', False), ('FasterRCNN', '.pt2', False), ('FasterRCNN', '.pt2', True)],
)
def test_a_detector_gives_the_maps_of_its_head(kind, suffix, open_size, tmp_path):
    if suffix == '.onnx':
        pytest.importorskip('onnxruntime')
    model, file, images = detector(kind), tmp_path / f'model{suffix}', photos(2)
    export(Exportable(model), images, file, open_size)
    if open_size:
        images = photos(1, 45, 20)
    x = model.data_preprocessor(dict(inputs=list(images.to(torch.uint8)), data_samples=None))['inputs']
    features = model.extract_feat(x)
    if kind == 'RetinaNet':
        expected = [*model.bbox_head(features)[0], *model.bbox_head(features)[1]]
    else:
        expected = [*features, *model.rpn_head(features)[0], *model.rpn_head(features)[1]]
    found = run(file, images)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Classifier(nn.Module):
    """As mmpretrain's ImageClassifier, as far as an export goes."""

    def __init__(self):
        super().__init__()
        self.data_preprocessor = nn.Identity()
        self.data_preprocessor.to_rgb = True
        self.backbone = MODELS.build(backbone(pruner='class'))
        self.head = nn.Linear(16, 5)
        liven(self).eval()
        self.backbone.pruners_are_new = False

    def extract_feat(self, x):
        return self.backbone(x)[-1].prefix[:, 0]


def test_a_classifier_gives_logits(tmp_path):
    model, images = Classifier(), photos(2)
    export(Exportable(model), images, tmp_path / 'model.pt2')
    (logits,) = run(tmp_path / 'model.pt2', images[:1])
    torch.testing.assert_close(logits, model.head(model.extract_feat(images[:1].flip(1))))


def test_of_equal_values_the_one_before_comes_first_in_onnx(tmp_path):
    """ONNX's TopK stands in for a stable sort, and pruning decides among equal scores by it."""
    pytest.importorskip('onnxruntime')

    class Sort(nn.Module):
        def forward(self, x):
            return x.argsort(dim=1, descending=True, stable=True), x.argsort(dim=0, stable=True)

    values = torch.randint(0, 3, (4, 50)).float()
    program = torch.export.export(Sort(), (values,))
    exporting._write_onnx(program, tmp_path / 'sort.onnx')
    for found, expected in zip(run(tmp_path / 'sort.onnx', values), Sort()(values)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize('size', [(3, 4), (3, 5), (6, 2), (1, 9), (7, 7)], ids=str)
def test_a_positional_embedding_is_resized_in_onnx_as_in_pytorch(size, tmp_path):
    """ONNX's Resize is not what TensorRT has, so products of matrices stand in for it."""
    pytest.importorskip('onnxruntime')

    class Resize(nn.Module):
        def forward(self, x):
            return nn.functional.interpolate(x, size, mode='bicubic', antialias=True)

    x = torch.randn(1, 2, 3, 4)
    operators = exporting._write_onnx(torch.export.export(Resize(), (x,)), tmp_path / 'resize.onnx')
    assert 'Resize' not in operators
    (found,) = run(tmp_path / 'resize.onnx', x)
    torch.testing.assert_close(found, Resize()(x), rtol=1e-5, atol=1e-6)


# --- what is wrong --------------------------------------------------------------------------------------------


def test_a_file_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    file = tmp_path / 'model.pt2'
    file.write_bytes(b'of before')
    load = exporting.load_export
    monkeypatch.setattr(
        exporting, 'load_export', lambda f: load(f)._replace(run=lambda x: [1 - y for y in load(f).run(x)])
    )
    with pytest.raises(ValueError, match=r'model\.pt2: \d+\.\d+% of the values differ .* nothing was written'):
        export(Exportable(segmentor(), 'logits'), photos(2), file)
    assert file.read_bytes() == b'of before' and [path.name for path in tmp_path.iterdir()] == [file.name]


def test_differences_are_counted_and_another_shape_is_all_of_them():
    model = Exportable(segmentor(), 'logits')
    assert compare(model, model, photos(2)) == (0, 0)
    largest, share = compare(model, lambda x: [y.clone().index_fill_(2, torch.tensor(0), 1e3) for y in model(x)],
                             photos(2))  # fmt: skip
    assert largest > 10 and share == pytest.approx(1 / 24)
    assert compare(model, lambda x: [y[..., 1:] for y in model(x)], photos(2)) == (float('inf'), 1)
    assert compare(model, lambda x: [y * float('nan') for y in model(x)], photos(2))[1] == 1


def test_what_needs_one_size_is_said(tmp_path, monkeypatch):
    file, images = tmp_path / 'model.pt2', photos(2)
    windowed = Exportable(segmentor(window_size=3, global_blocks=[4]))
    with pytest.raises(ValueError, match=r'open_size=True with window_size=3; .* images of one size'):
        export(windowed, images, file, open_size=True)
    model = Exportable(segmentor(depth=3))
    with pytest.raises(ValueError, match=r'fails on images \(2, 3, 30, 24\) \(.*\); a head that .* counts on one size'):
        compare(model, lambda x: model(x + torch.zeros(24, 32)), images, open_size=True)
    forward = model.model.decode_head.forward
    monkeypatch.setattr(model.model.decode_head, 'forward', lambda x: forward(x) * int(x[0].shape[2]))
    with pytest.raises(ValueError, match=r'cannot follow EncoderDecoder \(.*\); a head that .* counts on one size'):
        export(model, images, file, open_size=True)
    monkeypatch.setattr(model.model, 'test_cfg', ConfigDict(mode='slide', crop_size=(24, 24), stride=(16, 16)))
    with pytest.raises(ValueError, match=r"open_size=True with test_cfg\.mode='slide'; .*, \(24, 24\)"):
        export(model, images, file, open_size=True)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    model = segmentor()
    with pytest.raises(ValueError, match=r"output='boxes'; one of labels, logits is expected"):
        Exportable(model, 'boxes')
    with pytest.raises(ValueError, match=r"out='model\.trt': a file name that ends in \.pt2 or \.onnx"):
        export(Exportable(model), photos(1), 'model.trt')
    with pytest.raises(ValueError, match=r'Linear: segmentors, detectors .* can be exported'):
        Exportable(nn.Linear(2, 2))
    forward = model.decode_head.forward
    monkeypatch.setattr(model.decode_head, 'forward', lambda x: forward(x) if forward(x).max() > 0 else forward(x) + 1)
    with pytest.raises(ValueError, match=r'torch\.export cannot follow EncoderDecoder \(.*\); a head that'):
        export(Exportable(model), photos(2), tmp_path / 'model.pt2')
    monkeypatch.setattr(torch, '__version__', '2.8.0')
    with pytest.raises(ValueError, match=r'torch=2\.8\.0; 2\.9\.0 or newer is expected'):
        export(Exportable(model), photos(1), tmp_path / 'model.pt2')
    monkeypatch.undo()
    real = exporting.importlib.import_module

    def without(name):
        if name == 'onnxruntime':
            raise ModuleNotFoundError(f'No module named {name!r}')
        return real(name)

    monkeypatch.setattr(exporting.importlib, 'import_module', without)
    pytest.importorskip('onnxscript')
    with pytest.raises(ModuleNotFoundError, match=r'\.onnx needs onnxruntime: pip install'):
        export(Exportable(model), photos(1), tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())
