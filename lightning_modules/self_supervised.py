"""stub"""
import torch
def clip_each(parameters, limit):
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(limit / (n + 1e-6)).clamp(max=1.0) for n in norms])
