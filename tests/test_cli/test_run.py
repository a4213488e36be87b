"""From a config to a runner."""

import pytest
import torch
from mmengine.config import Config

from cropr_mm.cli.run import set_resume


def test_resume(tmp_path):
    file = tmp_path / 'iter_3.pth'
    torch.save(dict(a=torch.zeros(100)), file)
    cfg = Config(dict(work_dir=str(tmp_path)))
    set_resume(cfg, None)
    assert not cfg.get('resume')
    set_resume(cfg, 'auto')  # there is no last checkpoint: mmengine starts from the beginning
    assert cfg.resume and cfg.get('load_from') is None
    fine_tuning = Config(dict(work_dir=str(tmp_path), load_from=str(file)))
    set_resume(fine_tuning, 'auto')  # nothing to resume yet: it starts from where the config says
    assert not fine_tuning.resume and fine_tuning.load_from == str(file)
    set_resume(cfg, str(file))
    assert cfg.load_from == str(file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r'--resume=.*iter_3.pth'):
        set_resume(cfg, str(file))
    (tmp_path / 'last_checkpoint').write_text(str(file))
    fine_tuning = Config(dict(work_dir=str(tmp_path), load_from='elsewhere.pth'))
    with pytest.raises(ValueError, match=r'--resume=.*iter_3.pth'):
        set_resume(fine_tuning, 'auto')
    assert fine_tuning.resume and fine_tuning.load_from is None
    with pytest.raises(ValueError, match=r'--resume=.*iter_3.pth'):
        set_resume(cfg, 'auto')
