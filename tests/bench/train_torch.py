#!/usr/bin/env python3
"""The models of train_cpu and train_cuda in PyTorch, to stand beside them: whole training steps.

Pre-Norm, RoPE, SwiGLU, tied head; scaled_dot_product_attention, fused AdamW, gradient clipping.
bf16 is measured two ways, autocast and bf16 weights with fp32 masters, and the faster is printed;
with --compile each is also measured under torch.compile. K > 1 repeats the rows and gives the
attention a boolean mask: a correct reference, not a tuned kernel.

    train_torch.py [--model S,M] [--copies 1] [--precision fp32,bf16] [--steps 7] [--threads N]
    train_torch.py --device cuda --model 550m,1.2b --precision bf16 --compile
"""
import argparse
import math
import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = {"S": dict(layers=6, hidden=256, heads=4, ffn=704, vocab=8192, positions=256,
                    sequences=16),
          "M": dict(layers=12, hidden=768, heads=12, ffn=2048, vocab=32000, positions=1024,
                    sequences=1),
          "550m": dict(layers=16, hidden=1536, heads=16, groups=4, ffn=4096, vocab=32000,
                       positions=4096, sequences=4),
          "1.2b": dict(layers=16, hidden=2048, heads=32, groups=8, ffn=8192, vocab=32000,
                       positions=4096, sequences=4)}
WINDOW, CHUNK = 16, 32


def attention_mask(positions, copies):
    """Boolean [K*S, K*S] of PHD-CSWA, rows are queries, position-major; copy 0 is the original."""
    row = torch.arange(positions * copies)
    n, j = (row // copies)[:, None], (row % copies)[:, None]
    m, i = n.T, j.T
    band = (m < n) & (n - m < WINDOW) & (m // CHUNK == n // CHUNK)
    hidden = (j > 0) & (band | ((m == n) & (i <= j)))
    return torch.where(i == 0, m <= n, hidden)


def rope_table(positions, head, copies):
    angle = torch.arange(positions)[:, None] * 500000.0 ** (-torch.arange(0, head, 2) / head)
    angle = angle.repeat_interleave(copies, 0)
    return torch.cat([angle.cos(), angle.cos()], -1), torch.cat([angle.sin(), angle.sin()], -1)


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], -1) * sin.to(x.dtype)


class Layer(torch.nn.Module):
    def __init__(self, hidden, heads, groups, ffn):
        super().__init__()
        self.heads, self.groups = heads, groups
        self.attention_norm = torch.nn.RMSNorm(hidden, eps=1e-5)
        self.mlp_norm = torch.nn.RMSNorm(hidden, eps=1e-5)
        width = hidden + 2 * groups * (hidden // heads)
        self.qkv = torch.nn.Linear(hidden, width, bias=False)
        self.out = torch.nn.Linear(hidden, hidden, bias=False)
        self.gate_up = torch.nn.Linear(hidden, 2 * ffn, bias=False)
        self.down = torch.nn.Linear(ffn, hidden, bias=False)

    def forward(self, x, cos, sin, mask):
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (self.heads + 2 * self.groups, -1))
        q, k, v = (part.transpose(1, 2)
                   for part in qkv.split([self.heads, self.groups, self.groups], -2))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                           enable_gqa=self.groups < self.heads)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(torch.nn.Module):
    def __init__(self, shape, copies):
        super().__init__()
        self.copies = copies
        self.embedding = torch.nn.Embedding(shape["vocab"], shape["hidden"])
        self.layers = torch.nn.ModuleList(
            Layer(shape["hidden"], shape["heads"], shape.get("groups", shape["heads"]),
                  shape["ffn"]) for _ in range(shape["layers"]))
        self.final_norm = torch.nn.RMSNorm(shape["hidden"], eps=1e-5)
        for weight in self.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=1 / math.sqrt(2.5 * shape["hidden"]))
        cos, sin = rope_table(shape["positions"], shape["hidden"] // shape["heads"], copies)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        mask = attention_mask(shape["positions"], copies) if copies > 1 else None
        self.register_buffer("mask", mask)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        if self.copies > 1:
            x = x.repeat_interleave(self.copies, 1)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin, self.mask)
        x = self.final_norm(x[:, self.copies - 1::self.copies])
        logits = F.linear(x, self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class Trainer:
    """mode: fp32, autocast (fp32 weights, bf16 products), masters (bf16 weights, fp32 masters)."""

    def __init__(self, shape, copies, mode, compiled, device):
        torch.manual_seed(1234)
        self.mode, self.device = mode, device
        self.model = Model(shape, copies).to(device)
        if mode == "masters":
            self.masters = [p.detach().clone() for p in self.model.parameters()]
            self.model.bfloat16()
        else:
            self.masters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.masters, lr=3e-4, betas=(0.9, 0.95),
                                           weight_decay=0.1, fused=True)
        self.run = torch.compile(self.model) if compiled else self.model
        size = (shape["sequences"], shape["positions"])
        self.tokens = torch.randint(shape["vocab"], size, device=device)
        self.targets = torch.randint(shape["vocab"], size, device=device)

    def step(self):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mode == "autocast"):
            loss = self.run(self.tokens, self.targets)
        loss.backward()
        if self.mode == "masters":
            for master, weight in zip(self.masters, self.model.parameters()):
                master.grad = weight.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=True)
        self.optimizer.step()
        if self.mode == "masters":
            torch._foreach_copy_([p.data for p in self.model.parameters()], self.masters)
        self.model.zero_grad(set_to_none=True)
        return loss.item()


def measure(shape, copies, mode, compiled, steps, device):
    trainer, seconds = Trainer(shape, copies, mode, compiled, device), []
    for step in range(steps + 2):
        begin = time.perf_counter()
        loss = trainer.step()
        if step >= 2:
            seconds.append(time.perf_counter() - begin)
    tokens = shape["positions"] * shape["sequences"]
    return tokens / statistics.median(seconds), f"{mode}{' compiled' if compiled else ''}", loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="S,M")
    parser.add_argument("--copies", default="1")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else (
        f"{arguments.threads} threads")
    print(f"PyTorch {torch.__version__}, {where}", flush=True)
    for name in arguments.model.split(","):
        for copies in map(int, arguments.copies.split(",")):
            for precision in arguments.precision.split(","):
                modes = ["fp32"] if precision == "fp32" else ["autocast", "masters"]
                results = [measure(SHAPES[name], copies, mode, compiled, arguments.steps,
                                   arguments.device)
                           for mode in modes for compiled in ([0, 1] if arguments.compile else [0])]
                best = max(results)
                others = ", ".join(f"{how} {rate:.1f}" for rate, how, _ in sorted(results)[:-1])
                print(f"{name} K={copies} {precision}: {best[0]:8.1f} tokens/s  ({best[1]}"
                      f"{'; ' + others if others else ''})  loss {best[2]:.4f}", flush=True)


if __name__ == "__main__":
    main()
