"""For each folder of configs that mmsegmentation and mmdetection ship: one config, and what became of it.

The tests run every entry. docs/heads.md says how many work and which do not; a test holds the two together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSIONS = dict(mmseg='1.2.2', mmdet='3.3.0')


@dataclass(frozen=True)
class Entry:
    """A config and how it is run.

    Attributes:
        config: file name without ``.py``.
        options: settings that make it small, or take addresses of weights out, as ``--cfg-options`` would.
            ``{configs}`` stands for the library's folder of configs.
        side: pixels of the images where the head needs more than usual.
        even: whether both images of the batch have one size, as the config's own pipeline gives them.
        needs: a package without which the config cannot be read; tests take it from its own folder.
        lacks: the package whose absence is the error.
        error: what the error says (a regular expression) where the config cannot work.
        reason: the same in words, for the docs.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    side: int = 96
    even: bool = False
    needs: str | None = None
    lacks: str | None = None
    error: str | None = None
    reason: str = ''


NARROW = {'model.decode_head.channels': 64, 'model.auxiliary_head.channels': 64}
# Neither weights from the network nor packages for matching tracks, to get as far as the training.
TRACKER_ALONE = {'model.reid': None, 'model.tracker': None, 'model.data_preprocessor': None}
TEXT = 'reads a text model (transformers is not installed, and it needs its weights)'
LAP = 'the tracker needs the package lap; its detector is a YOLOX, which works'
TRACK = 'trains detector and tracker together on pairs of frames, which CroprHook cannot supervise'
TRACK_ERROR = r'CroprHook cannot supervise a (pruner|scorer) there'

MMSEG: dict[str, Entry] = {
    'ann': Entry('ann_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'apcnet': Entry('apcnet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'beit': Entry('beit-base_upernet_8xb2-160k_ade20k-640x640', NARROW),
    'bisenetv1': Entry('bisenetv1_r18-d32-in1k-pre_4xb4-160k_cityscapes-1024x1024'),
    'bisenetv2': Entry('bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024'),
    'ccnet': Entry('ccnet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'cgnet': Entry('cgnet_fcn_4xb4-60k_cityscapes-680x680'),
    'convnext': Entry('convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512', NARROW, needs='mmpretrain'),
    'danet': Entry('danet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'ddrnet': Entry('ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024'),
    'deeplabv3': Entry('deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024'),
    'deeplabv3plus': Entry('deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024'),
    'dmnet': Entry('dmnet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'dnlnet': Entry('dnl_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'dpt': Entry('dpt_vit-b16_8xb2-160k_ade20k-512x512'),
    'dsdl': Entry('cityscapes'),
    'emanet': Entry('emanet_r50-d8_4xb2-80k_cityscapes-512x1024'),
    'encnet': Entry('encnet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'erfnet': Entry('erfnet_fcn_4xb4-160k_cityscapes-512x1024'),
    'fastfcn': Entry('fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024'),
    'fastscnn': Entry('fast_scnn_8xb4-160k_cityscapes-512x1024'),
    'fcn': Entry('fcn_r18-d8_4xb2-80k_cityscapes-512x1024'),
    'gcnet': Entry('gcnet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'hrnet': Entry('fcn_hr18_4xb2-160k_cityscapes-512x1024'),
    'icnet': Entry('icnet_r18-d8-in1k-pre_4xb2-160k_cityscapes-832x832'),
    'isanet': Entry('isanet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'knet': Entry('knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512'),
    'mae': Entry('mae-base_upernet_8xb2-amp-160k_ade20k-512x512', NARROW),
    'mask2former': Entry('mask2former_r50_8xb2-160k_ade20k-512x512'),
    'maskformer': Entry('maskformer_r50-d32_8xb2-160k_ade20k-512x512'),
    'mobilenet_v2': Entry('mobilenet-v2-d8_deeplabv3_4xb2-80k_cityscapes-512x1024'),
    'mobilenet_v3': Entry('mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024', side=400),
    'nonlocal_net': Entry('nonlocal_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'ocrnet': Entry('ocrnet_hr18_4xb2-160k_cityscapes-512x1024'),
    'pidnet': Entry('pidnet-s_2xb6-120k_1024x1024-cityscapes'),
    'point_rend': Entry('pointrend_r50_4xb2-80k_cityscapes-512x1024'),
    'poolformer': Entry('fpn_poolformer_s12_8xb4-40k_ade20k-512x512', needs='mmpretrain'),
    'psanet': Entry('psanet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'pspnet': Entry('pspnet_r18-d8_4xb2-80k_cityscapes-512x1024'),
    'resnest': Entry('resnest_s101-d8_pspnet_4xb2-80k_cityscapes512x1024'),
    'san': Entry(
        'san-vit-b16_coco-stuff164k-640x640',
        error=r'no backbone at model\.backbone or model\.detector\.backbone; model has .*image_encoder',
        reason='an image encoder and a text encoder of CLIP in place of a backbone',
    ),
    'segformer': Entry('segformer_mit-b0_8xb1-160k_cityscapes-1024x1024'),
    'segmenter': Entry('segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512'),
    'segnext': Entry('segnext_mscan-s_1xb16-adamw-160k_ade20k-512x512'),
    'sem_fpn': Entry('fpn_r50_4xb2-80k_cityscapes-512x1024'),
    'setr': Entry(
        'setr_vit-l_mla_8xb2-160k_ade20k-512x512',
        {'model.backbone.num_layers': 4, 'model.backbone.out_indices': (0, 1, 2, 3)},
    ),
    'stdc': Entry('stdc1_4xb12-80k_cityscapes-512x1024'),
    'swin': Entry('swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512', NARROW),
    'twins': Entry('twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512'),
    'unet': Entry('unet-s5-d16_fcn_4xb4-40k_drive-64x64'),
    'upernet': Entry('upernet_r18_4xb2-40k_cityscapes-512x1024', NARROW),
    'vit': Entry('vit_deit-s16_upernet_8xb2-160k_ade20k-512x512', NARROW),
    'vpd': Entry(
        'vpd_sd_4xb8-25k_nyu-480x480',
        error='To use VPD model, please install required packages',
        reason='a latent diffusion model with its weights as backbone, and depth in place of classes',
    ),
}

# Further heads, where one folder holds several.
MMSEG_MORE: dict[str, Entry] = {
    'knet, DeepLabV3': Entry('knet-s3_r50-d8_deeplabv3_8xb2-adamw-80k_ade20k-512x512'),
    'segmenter, mask transformer': Entry('segmenter_vit-s_mask_8xb1-160k_ade20k-512x512'),
    'setr, naive': Entry(
        'setr_vit-l_naive_8xb2-160k_ade20k-512x512',
        {'model.backbone.num_layers': 4, 'model.backbone.out_indices': (0, 1, 2, 3)},
    ),
    'setr, PUP': Entry(
        'setr_vit-l_pup_8xb2-160k_ade20k-512x512',
        {'model.backbone.num_layers': 4, 'model.backbone.out_indices': (0, 1, 2, 3)},
    ),
}

MMDET: dict[str, Entry] = {
    'albu_example': Entry('mask-rcnn_r50_fpn_albu-1x_coco'),
    'atss': Entry('atss_r50_fpn_1x_coco'),
    'autoassign': Entry('autoassign_r50-caffe_fpn_1x_coco'),
    'boxinst': Entry(
        'boxinst_r50_fpn_ms-90k_coco',
        lacks='skimage',
        error='skimage is not installed',
        reason='its data preprocessor needs the package scikit-image',
    ),
    'bytetrack': Entry(
        'bytetrack_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval',
        lacks='lap',
        error='lap is not installed',
        reason=LAP,
    ),
    'carafe': Entry(
        'faster-rcnn_r50_fpn-carafe_1x_coco',
        error='carafe_forward_impl: implementation for device cpu not',
        reason="mmcv's CARAFE operator has no CPU version",
    ),
    'cascade_rcnn': Entry('cascade-mask-rcnn_r50_fpn_1x_coco'),
    'cascade_rpn': Entry('cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco'),
    'centernet': Entry('centernet-update_r18_fpn_8xb8-amp-lsj-200e_coco'),
    'centripetalnet': Entry(
        'centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco', {'model.backbone.stage_blocks': [1] * 6}
    ),
    'cityscapes': Entry('mask-rcnn_r50_fpn_1x_cityscapes'),
    'common': Entry(
        'lsj-100e_coco-detection', error='the config has no model', reason='schedules and data alone, without a model'
    ),
    'condinst': Entry('condinst_r50_fpn_ms-poly-90k_coco_instance'),
    'conditional_detr': Entry('conditional-detr_r50_8xb2-50e_coco'),
    'convnext': Entry('mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco', needs='mmpretrain'),
    'cornernet': Entry('cornernet_hourglass104_8xb6-210e-mstest_coco', {'model.backbone.stage_blocks': [1] * 6}),
    'crowddet': Entry(
        'crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman',
        {'model.roi_head.bbox_roi_extractor.roi_layer.use_torchvision': False},  # mmcv's operator, the same
    ),
    'dab_detr': Entry('dab-detr_r50_8xb2-50e_coco'),
    'dcn': Entry('faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco'),
    'dcnv2': Entry('faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco'),
    'ddod': Entry('ddod_r50_fpn_1x_coco', side=384),
    'ddq': Entry('ddq-detr-4scale_r50_8xb2-12e_coco'),
    'deepfashion': Entry('mask-rcnn_r50_fpn_15e_deepfashion'),
    'deepsort': Entry(
        'deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval',
        TRACKER_ALONE,
        error='Please train `detector` and `reid` models firstly',
        reason='puts a trained detector and a trained appearance model together; it is not trained itself',
    ),
    'deformable_detr': Entry('deformable-detr_r50_16xb2-50e_coco'),
    'detectors': Entry(
        'cascade-rcnn_r50-rfp_1x_coco',
        error='hands on the image itself',
        reason='its recursive neck runs copies of the old backbone on the image',
    ),
    'detr': Entry('detr_r18_8xb2-500e_coco'),
    'dino': Entry('dino-4scale_r50_8xb2-12e_coco'),
    'double_heads': Entry('dh-faster-rcnn_r50_fpn_1x_coco'),
    'dsdl': Entry('coco'),
    'dyhead': Entry('atss_r50-caffe_fpn_dyhead_1x_coco'),
    'dynamic_rcnn': Entry('dynamic-rcnn_r50_fpn_1x_coco'),
    'efficientnet': Entry('retinanet_effb3_fpn_8xb4-crop896-1x_coco'),
    'empirical_attention': Entry('faster-rcnn_r50-attn0010_fpn_1x_coco'),
    'fast_rcnn': Entry('fast-rcnn_r50_fpn_1x_coco'),
    'faster_rcnn': Entry('faster-rcnn_r50_fpn_1x_coco'),
    'fcos': Entry('fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco'),
    'foveabox': Entry('fovea_r50_fpn_4xb4-1x_coco'),
    'fpg': Entry('faster-rcnn_r50_fpg-chn128_crop640-50e_coco'),
    'free_anchor': Entry('freeanchor_r50_fpn_1x_coco'),
    'fsaf': Entry('fsaf_r50_fpn_1x_coco'),
    'gcnet': Entry('mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco'),
    'gfl': Entry('gfl_r50_fpn_1x_coco'),
    'ghm': Entry('retinanet_r50_fpn_ghm-1x_coco'),
    'glip': Entry(
        'glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco',
        lacks='transformers',
        error='transformers is not installed',
        reason=TEXT,
    ),
    'gn': Entry('mask-rcnn_r50_fpn_gn-all_2x_coco'),
    'gn+ws': Entry('faster-rcnn_r50_fpn_gn-ws-all_1x_coco'),
    'grid_rcnn': Entry('grid-rcnn_r50_fpn_gn-head_1x_coco'),
    'groie': Entry('faste-rcnn_r50_fpn_groie_1x_coco'),
    'grounding_dino': Entry(
        'grounding_dino_r50_scratch_8xb2_1x_coco',
        lacks='transformers',
        error='transformers is not installed',
        reason=TEXT,
    ),
    'guided_anchoring': Entry(
        'ga-faster-rcnn_r50_fpn_1x_coco',
        error='masked_im2col_forward_impl: implementation for device cpu not found',
        reason="trains; prediction needs mmcv's masked convolution, which has no CPU version",
    ),
    'hrnet': Entry('faster-rcnn_hrnetv2p-w18-1x_coco'),
    'htc': Entry('htc_r50_fpn_1x_coco'),
    'instaboost': Entry('mask-rcnn_r50_fpn_instaboost-4x_coco'),
    'lad': Entry(
        'lad_r50-paa-r101_fpn_2xb8_coco_1x',
        {'model.teacher_ckpt': None},
        lacks='sklearn',
        error='install sklearn',
        reason='its head needs the package scikit-learn',
    ),
    'ld': Entry(
        'ld_r18-gflv1-r101_fpn_1x_coco',
        {'model.teacher_config': '{configs}/gfl/gfl_r101_fpn_ms-2x_coco.py', 'model.teacher_ckpt': None},
    ),
    'legacy_1.x': Entry('mask-rcnn_r50_fpn_1x_coco_v1'),
    'libra_rcnn': Entry('libra-faster-rcnn_r50_fpn_1x_coco'),
    'lvis': Entry('mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1'),
    'mask2former': Entry('mask2former_r50_8xb2-lsj-50e_coco'),
    'mask2former_vis': Entry(
        'mask2former_r50_8xb2-8e_youtubevis2019',
        error="model.type='Mask2FormerVideo' takes no neck",
        reason='the model takes no neck, which is where the maps for its head are made',
    ),
    'mask_rcnn': Entry('mask-rcnn_r50_fpn_1x_coco'),
    'maskformer': Entry('maskformer_r50_ms-16xb1-75e_coco'),
    'masktrack_rcnn': Entry(
        'masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019', error=TRACK_ERROR, reason=TRACK
    ),
    'misc': Entry(
        'd2_faster-rcnn_r50-caffe_fpn_ms-90k_coco',
        error=r'model\.detector or model\.detector\.backbone has no type',
        reason="a model of detectron2 inside, with detectron2's own settings",
    ),
    'mm_grounding_dino': Entry(
        'grounding_dino_swin-t_pretrain_obj365',
        lacks='transformers',
        error='transformers is not installed',
        reason=TEXT,
    ),
    'ms_rcnn': Entry('ms-rcnn_r50-caffe_fpn_1x_coco'),
    'nas_fcos': Entry('nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco'),
    'nas_fpn': Entry('retinanet_r50_nasfpn_crop640-50e_coco'),
    'objects365': Entry('retinanet_r50_fpn_1x_objects365v1'),
    'ocsort': Entry(
        'ocsort_yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17halfval',
        lacks='lap',
        error='lap is not installed',
        reason=LAP,
    ),
    'openimages': Entry('faster-rcnn_r50_fpn_32xb2-1x_openimages'),
    'paa': Entry(
        'paa_r50_fpn_1x_coco',
        lacks='sklearn',
        error='install sklearn',
        reason='its head needs the package scikit-learn',
    ),
    'pafpn': Entry('faster-rcnn_r50_pafpn_1x_coco'),
    'panoptic_fpn': Entry('panoptic-fpn_r50_fpn_1x_coco'),
    'pascal_voc': Entry('faster-rcnn_r50_fpn_1x_voc0712'),
    'pisa': Entry('faster-rcnn_r50_fpn_pisa_1x_coco'),
    'point_rend': Entry('point-rend_r50-caffe_fpn_ms-1x_coco'),
    'pvt': Entry('retinanet_pvt-t_fpn_1x_coco'),
    'qdtrack': Entry(
        'qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval',
        error=TRACK_ERROR,
        reason=TRACK,
    ),
    'queryinst': Entry(
        'queryinst_r50_fpn_1x_coco',  # masks of untrained boxes outside the image cannot be pasted on a CPU
        {f'model.roi_head.bbox_head.{i}.bbox_coder.clip_border': True for i in range(6)},
        even=True,
    ),
    'regnet': Entry('faster-rcnn_regnetx-3.2GF_fpn_1x_coco'),
    'reid': Entry(
        'reid_r50_8xb32-6e_mot17train80_test-mot17val20',
        error='mmpretrain.ResNet is not in|mmpretrain first',
        reason="a classifier of mmpretrain's making; no dense prediction",
    ),
    'reppoints': Entry('reppoints-moment_r50_fpn_1x_coco'),
    'res2net': Entry('faster-rcnn_res2net-101_fpn_2x_coco'),
    'resnest': Entry('faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco'),
    'resnet_strikes_back': Entry('retinanet_r50-rsb-pre_fpn_1x_coco'),
    'retinanet': Entry('retinanet_r50_fpn_1x_coco'),
    'rpn': Entry('rpn_r50_fpn_1x_coco'),
    'rtmdet': Entry('rtmdet_tiny_8xb32-300e_coco', even=True),
    'sabl': Entry('sabl-cascade-rcnn_r50_fpn_1x_coco'),
    'scnet': Entry('scnet_r50_fpn_1x_coco'),
    'scratch': Entry('faster-rcnn_r50-scratch_fpn_gn-all_6x_coco'),
    'seesaw_loss': Entry('mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1'),
    'selfsup_pretrain': Entry('mask-rcnn_r50-mocov2-pre_fpn_1x_coco'),
    'simple_copy_paste': Entry('mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-270k_coco'),
    'soft_teacher': Entry(
        'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
        error=TRACK_ERROR,
        reason='runs its detector several times a step, with labels of its own',
    ),
    'solo': Entry('decoupled-solo-light_r50_fpn_3x_coco'),
    'solov2': Entry('solov2-light_r18_fpn_ms-3x_coco'),
    'sort': Entry('faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval'),
    'sparse_rcnn': Entry('sparse-rcnn_r50_fpn_1x_coco'),
    'ssd': Entry(
        'ssd300_coco',
        side=300,
        even=True,
        error="'SSDHead' object has no attribute 'loss_cls'",
        reason='trains; prediction fails in mmdetection 3.3.0 whatever the backbone',
    ),
    'strong_baselines': Entry('mask-rcnn_r50-caffe_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco'),
    'strongsort': Entry(
        'strongsort_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval',
        {**TRACKER_ALONE, 'model.postprocess_model': None},
        error='Please train `detector` and `reid` models firstly',
        reason='puts a trained detector and a trained appearance model together; it is not trained itself',
    ),
    'swin': Entry('mask-rcnn_swin-t-p4-w7_fpn_1x_coco'),
    'timm_example': Entry('retinanet_timm-tv-resnet50_fpn_1x_coco', needs='timm'),
    'tood': Entry('tood_r50_fpn_1x_coco'),
    'tridentnet': Entry(
        'tridentnet_r50-caffe_1x_coco',
        error='in training for a batch of 2; 2 in each are expected',
        reason='its backbone gives three maps for each image, and its head expects them',
    ),
    'v3det': Entry(
        'faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x',
        {'model.roi_head.bbox_head.num_classes': 100, 'model.roi_head.bbox_head.loss_cls.num_classes': 100},
    ),
    'vfnet': Entry('vfnet_r50_fpn_1x_coco'),
    'wider_face': Entry('retinanet_r50_fpn_1x_widerface'),
    'yolact': Entry('yolact_r50_1xb8-55e_coco', side=138, even=True),
    'yolo': Entry('yolov3_mobilenetv2_8xb24-320-300e_coco'),
    'yolof': Entry('yolof_r50-c5_8xb8-1x_coco'),
    'yolox': Entry('yolox_tiny_8xb8-300e_coco', even=True),
}

MMDET_MORE: dict[str, Entry] = {
    'cascade_rcnn, boxes alone': Entry('cascade-rcnn_r50_fpn_1x_coco'),
    'deformable_detr, two stages': Entry('deformable-detr-refine-twostage_r50_16xb2-50e_coco'),
    'faster_rcnn, C4': Entry('faster-rcnn_r50-caffe-c4_ms-1x_coco'),
    'mask2former, panoptic': Entry('mask2former_r50_8xb2-lsj-50e_coco-panoptic'),
    'mask_rcnn, polygons': Entry('mask-rcnn_r50-caffe_fpn_ms-poly-1x_coco'),
    'rtmdet, instances': Entry('rtmdet-ins_tiny_8xb32-300e_coco', even=True),
    'solo, SOLO': Entry('solo_r18_fpn_8xb8-lsj-200e_coco'),
    'yolo, Darknet': Entry('yolov3_d53_8xb8-320-273e_coco'),
    'yolox, large': Entry('yolox_s_8xb8-300e_coco', even=True),
}


def tables() -> list[str]:
    """The tables of docs/heads.md: what does not work."""
    parts = []
    for library, entries, more in (('mmseg', MMSEG, MMSEG_MORE), ('mmdet', MMDET, MMDET_MORE)):
        fails = sorted((name, e.config, e.reason) for name, e in {**entries, **more}.items() if e.error)
        rows = [f'| {name} | `{config}` | {reason} |' for name, config, reason in fails]
        parts.append('\n'.join([f'| {library} folder | config | why not |', '| --- | --- | --- |', *rows]))
    return parts


def summary() -> str:
    """How many folders work, as docs/heads.md and README.md say it."""
    seg, det = (f'{sum(not e.error for e in entries.values())} of {len(entries)}' for entries in (MMSEG, MMDET))
    return f'{seg} folders of mmsegmentation and {det} of mmdetection'


def further() -> str:
    """How many heads work besides, where one folder holds several, as docs/heads.md says it."""
    return f'{sum(not e.error for e in {**MMSEG_MORE, **MMDET_MORE}.values())} further heads'


def write(file: Path) -> None:
    """Put tables and counts into the docs, each where the one with its heading stands."""
    text = re.sub(r'\d+ of \d+ folders of mmsegmentation and \d+ of \d+ of mmdetection', summary(), file.read_text())
    text = re.sub(r'\d+ further heads', further(), text)
    for part in tables():
        heading = part.split('\n')[0]
        start = text.index(heading + '\n')
        end = text.index('\n\n', start)
        text = text[:start] + part + text[end:]
    file.write_text(text)


if __name__ == '__main__':
    write(Path(__file__).resolve().parents[2] / 'docs' / 'heads.md')
