# %% [markdown]
# # Segmentor: XCiT under UperNet on drawn shapes
# 8 images and 2 iterations; the config as it is trains 600.

# %%
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmvit_backbones import visualization as vis
from mmvit_backbones.datasets import write_shapes

CONFIG = 'configs/shapes/xcit-toy_uperhead_shapes.py'
write_shapes(Path('data/shapes'), formats=('ade',), train=8, val=2, size=(64, 80))

# %%
cfg = Config.fromfile(CONFIG)
cfg.work_dir = 'work_dirs/segmentor'
cfg.train_cfg.update(max_iters=2, val_interval=2)
for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
Runner.from_cfg(cfg).train()

# %%
subject = vis.load_subject(CONFIG, 'work_dirs/segmentor/iter_2.pth')
vis.draw_predictions(vis.predict(subject, number=2), subject.classes).savefig('segments.png')
