#!/usr/bin/env python3
"""The table of attention_cuda for PyTorch on the same GPU: the same mask, TFLOP/s of visible pairs.

K = 1: scaled_dot_product_attention (causal), every backend that runs, the fastest printed. K > 1:
FlexAttention (compiled) with PHD-CSWA-K-16-32 as its mask, in two layouts: copies interleaved
(row n K + s), and copies one after the other, which leaves empty blocks it can skip.

    attention_torch.py [--dims 64,128] [--copies 1,2,3,4] [--positions 2048,...] [--rounds 10]
"""
import argparse
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

WINDOW, CHUNK = 16, 32


def visible_pairs(positions, copies):
    """Originals for every copy, own hidden copies, the band of earlier ones."""
    originals = copies * positions * (positions + 1) // 2
    own = positions * copies * (copies - 1) // 2
    band = sum(min(n % CHUNK, WINDOW - 1) for n in range(positions)) * (copies - 1) ** 2
    return originals + own + band


def mask_function(positions, copies, interleaved):
    def mask(_batch, _head, q, k):
        n, s = (q // copies, q % copies) if interleaved else (q % positions, q // positions)
        m, t = (k // copies, k % copies) if interleaved else (k % positions, k // positions)
        band = (m < n) & (n - m < WINDOW) & (m // CHUNK == n // CHUNK)
        hidden = (s > 0) & (band | ((m == n) & (t <= s)))
        return torch.where(t == 0, m <= n, hidden)
    return mask


def seconds_of(call, rounds):
    times = []
    for _ in range(rounds + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times[2:])


def measure(attend, shape, rounds):
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
               for _ in range(3))
    out = attend(q, k, v)
    dout = torch.randn_like(out)
    forward = seconds_of(lambda: attend(q, k, v), rounds)
    backward = seconds_of(
        lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), rounds)
    return forward, backward


def candidates(positions, copies):
    """(name, function) of what can compute this mask."""
    if copies == 1:
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            def attend(q, k, v, backend=backend):
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            yield backend.name.lower(), attend
    compiled = torch.compile(flex_attention)
    for interleaved in ([True] if copies == 1 else [True, False]):
        block_mask = create_block_mask(mask_function(positions, copies, interleaved), None, None,
                                       copies * positions, copies * positions, _compile=True)
        name = "flex" if copies == 1 else f"flex {'interleaved' if interleaved else 'by copy'}"
        yield name, lambda q, k, v, m=block_mask: compiled(q, k, v, block_mask=m)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dims", default="64,128")
    parser.add_argument("--copies", default="1,2,3,4")
    parser.add_argument("--positions", default="2048,4096,8192,16384,32768")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    print(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}", flush=True)
    numbers = lambda text: map(int, text.split(","))
    for dim in numbers(arguments.dims):
        for copies in numbers(arguments.copies):
            for positions in numbers(arguments.positions):
                sequences = max(1, arguments.tokens // positions)
                shape = (sequences, arguments.width // dim, copies * positions, dim)
                work = visible_pairs(positions, copies) * sequences * arguments.width * 1e-12
                for name, attend in candidates(positions, copies):
                    try:
                        forward, backward = measure(attend, shape, arguments.rounds)
                    except (RuntimeError, torch.OutOfMemoryError) as error:
                        print(f"D={dim} K={copies} N={positions} {name}: {str(error)[:100]}")
                        continue
                    print(f"D={dim:<4} K={copies} N={positions:<6} B={sequences:<3} forward "
                          f"{forward * 1e3:8.3f} ms {4 * work / forward:6.1f} TFLOP/s   backward "
                          f"{backward * 1e3:8.3f} ms {10 * work / backward:6.1f} TFLOP/s  {name}",
                          flush=True)
                torch._dynamo.reset()


if __name__ == "__main__":
    main()
