# %% [markdown]
# # Plain PyTorch: fine-tune a classifier on tensors
# Random images stand in for a data set; the steps are those of a real one.

# %%
import torch
import torch.nn.functional as F

from mmvit_backbones import create_model, fuse

torch.manual_seed(0)
images = torch.randn(8, 3, 64, 64)
labels = torch.arange(8) % 2
images[labels == 1] += 1  # what there is to learn

# %% [markdown]
# `pretrained=True` would start from public weights.

# %%
model = create_model('xcit_nano_12_p16', num_classes=2, drop_path_rate=0.0)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for _step in range(6):
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))
print([round(loss, 3) for loss in losses])
assert losses[-1] < losses[0]

# %% [markdown]
# For inference, `fuse` folds what is constant. The results stay the same.

# %%
model.eval()
fused = fuse(model)
with torch.no_grad():
    assert torch.allclose(model(images), fused(images), atol=1e-4)
