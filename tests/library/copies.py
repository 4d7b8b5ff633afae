"""Whether copies of this process can still train."""

from __future__ import annotations

import os

import torch


def copies_train() -> bool:
    """Whether PyTorch takes a backward pass in a fork of this process, which it may refuse after one here."""
    pid = os.fork()
    if not pid:
        try:
            torch.ones(1, requires_grad=True).sum().backward()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
