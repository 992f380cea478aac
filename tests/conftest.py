"""One thread for torch: the nets here are so small that a second one mostly waits."""

import torch

torch.set_num_threads(1)
