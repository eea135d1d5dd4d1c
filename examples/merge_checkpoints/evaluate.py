"""Print the test accuracy of checkpoints, and of their plain average."""

import sys

import numpy as np
import torch
from model import Net
from safetensors.torch import load_file

test = np.load("test.npz")
inputs, targets = torch.tensor(test["x"]), torch.tensor(test["y"])


def accuracy(state_dict):
    """Share of the test set that is right."""
    net = Net()
    net.load_state_dict(state_dict)
    return (net(inputs).argmax(1) == targets).float().mean().item()


networks = {name: load_file(name) for name in sys.argv[1:]}
first, second = list(networks.values())[:2]
networks["plain average of the first two"] = {name: (first[name] + second[name]) / 2 for name in first}
for name, state_dict in networks.items():
    print(f"{accuracy(state_dict):6.1%}  {name}")
