# %% [markdown]
# # Detector: train on drawn shapes, look at the predictions
# The same steps as `tools/train.py`, in one process and in seconds: 8 images, 4 iterations. For a
# detector that finds something, take the config as it is.

# %%
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmvit_backbones import visualization as vis
from mmvit_backbones.datasets import write_shapes

write_shapes(Path('data/shapes'), formats=('coco',), train=8, val=2, size=(64, 80))

# %%
cfg = Config.fromfile('configs/shapes/retinanet_twins-svt-toy_fpn_shapes.py')
cfg.work_dir = 'work_dirs/detector'
cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=2)
cfg.default_hooks.logger.interval = 1
for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
Runner.from_cfg(cfg).train()

# %% [markdown]
# Predictions beside the ground truth, the feature maps, and the loss.

# %%
subject = vis.load_subject(
    'configs/shapes/retinanet_twins-svt-toy_fpn_shapes.py', 'work_dirs/detector/epoch_2.pth'
)
found = vis.predict(subject, number=2)
vis.draw_predictions(found, subject.classes, score=0.02).savefig('predictions.png')
sample = vis.read_sample(found[0].img_path, 512, subject.mean, subject.std)
vis.draw_pyramid(subject.backbone, sample).savefig('pyramid.png')
vis.draw_curves(['work_dirs/detector']).savefig('curves.png')
