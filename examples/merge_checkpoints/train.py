"""Train two networks from two initialisations; write their checkpoints, calibration inputs and a test set."""

import numpy as np
import torch
from model import Net
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = (images[order] / 16).astype(np.float32), labels[order]
np.savez("calibration.npz", x=images[:256])
np.savez("test.npz", x=images[256:616], y=labels[256:616])
inputs, targets = torch.tensor(images[616:]), torch.tensor(labels[616:])

for seed, name in enumerate("ab"):
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        for part in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[part]), targets[part]).backward()
            optimizer.step()
    save_file(net.state_dict(), f"{name}.safetensors")
    print(f"wrote {name}.safetensors")
