# %% [markdown]
# # Classifier: XCiT with class attention on folders of images

# %%
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmvit_backbones import visualization as vis
from mmvit_backbones.datasets import write_shapes

CONFIG = 'configs/shapes/xcit-toy_cls_shapes.py'
write_shapes(Path('data/shapes'), formats=('imagenet',), train=16, val=4, size=(64, 80))

# %%
cfg = Config.fromfile(CONFIG)
cfg.work_dir = 'work_dirs/classifier'
cfg.train_cfg.update(max_epochs=1, val_interval=1)
for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
Runner.from_cfg(cfg).train()

# %% [markdown]
# What it says, and where its class token looks.

# %%
subject = vis.load_subject(CONFIG, 'work_dirs/classifier/epoch_1.pth')
found = vis.predict(subject, number=4)
vis.draw_predictions(found, subject.classes).savefig('labels.png')
sample = vis.read_sample(found[0].img_path, 128, subject.mean, subject.std)
vis.draw_class_attention(subject.model, sample).savefig('class_attention.png')
vis.draw_channel_attention(subject.backbone, sample).savefig('channel_attention.png')
