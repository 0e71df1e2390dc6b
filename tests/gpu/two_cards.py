"""A training step in 4 bits under DDP; started twice by torch.distributed.run. Prints the largest difference between
the gradients of the processes.

    python -m torch.distributed.run --nproc_per_node=2 -m tests.gpu.two_cards cuda
"""

from __future__ import annotations

import os
import sys

import peft
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from jetmoe.adapters.ddp import exclude_frozen
from jetmoe.lora import lora_config
from tests.gpu.correctness import toy


def main(device: str) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(toy("jetmoe", "nf4").to(device), lora_config("all", r=8, family="jetmoe"))
    exclude_frozen(adapted)
    copies = DistributedDataParallel(adapted, device_ids=[rank] if device == "cuda" else None)
    ids = torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(rank)).to(device)
    copies(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    mine = torch.cat([one.grad.flatten() for one in adapted.parameters() if one.grad is not None])
    both = [torch.empty_like(mine) for _ in range(2)]
    distributed.all_gather(both, mine)
    if rank == 0:
        print(float((both[0] - both[1]).abs().max()))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
