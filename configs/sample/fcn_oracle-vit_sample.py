# For analysis: the labels choose, object tokens first. No method can select better for this task.
_base_ = './fcn_cropr-vit_sample.py'
custom_imports = dict(imports=['cropr_mm', 'cropr_mm.analysis.oracle'])
model = dict(backbone=dict(pruning=dict(pruner=dict(_delete_=True, type='OraclePruner'))))
custom_hooks = [dict(type='CroprHook', ramp=0.5), dict(type='OracleHook', object_classes=[3, 4, 5, 6, 7, 8])]
