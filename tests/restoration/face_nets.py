"""The two nets for faces, as large as published, filled with random numbers."""

import torch
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel_extra_arches.architectures.CodeFormer import CodeFormer
from torch import nn

NETS = {"gfpgan": GFPGAN, "codeformer": CodeFormer}


def random(name: str) -> nn.Module:
    torch.manual_seed(1)
    net = NETS[name]().eval()
    for key, value in net.named_parameters():
        if key.endswith("conv1.weight") and value.shape == (1,):  # of StyleGAN's noise, 0 at first
            nn.init.constant_(value, 0.1)
    return net
