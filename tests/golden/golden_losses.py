#!/usr/bin/env python3
"""Golden losses: 20 training steps of tiny models in plain PyTorch, for the golden test.

Written from the equations (HybridNorm, arXiv 2503.04598 A.1; PHD-Transformer, arXiv 2504.14992
Eq. 2), not from Phalanx's code: all K*S rows are computed, the mask is a dense boolean matrix, the
softmax is the plain one. Weights are drawn from the same counter (Philox4x32-10 keyed by parameter
name and element index), so no weight file is needed.

    golden_losses.py            prints how far the stored numbers are from a fresh run
    golden_losses.py --write    writes golden_losses.json beside this script

The stored numbers are a float64 run. `float32` and `bfloat16` hold, per case, the largest relative
deviation of the same script in that precision: the scale of the test's tolerances.
"""
import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

SEED = 1234
STEPS, MICRO_BATCHES, SEQUENCES, POSITIONS = 20, 2, 2, 24
DISTINCT_BATCHES = 2  # batches repeat, so that the loss falls and the optimizer is seen in it
IGNORED_SHARE = 0.15
OPTIMIZER = {"lr": 5e-3, "min-lr": 5e-4, "lr-warmup-iters": 4, "lr-warmup-init": 1e-3,
             "lr-decay-iters": 20, "lr-decay-style": "cosine", "weight-decay": 0.1,
             "adam-beta1": 0.9, "adam-beta2": 0.95, "adam-eps": 1e-8, "clip-grad": 1.0}
SHAPE = {"num-layers": 2, "hidden-size": 32, "ffn-hidden-size": 48, "num-attention-heads": 4,
         "num-query-groups": 2, "kv-channels": 8, "vocab-size": 61,
         "make-vocab-size-divisible-by": 64, "rotary-base": 10000.0, "norm-epsilon": 1e-5,
         "untie-embeddings-and-output-weights": False, "z-loss-coeff": 0.0,
         "phd": "phd", "phd-copies": 1, "sparse-pattern": "full"}
CASES = {
    "pre_norm": {"norm-scheme": "pre-norm", "init-method": "normal"},
    "hybridnorm_star": {"norm-scheme": "hybridnorm-star", "init-method": "megatron"},
    "phd_cswa_3": {"norm-scheme": "hybridnorm-star", "init-method": "megatron", "num-layers": 3,
                   "phd": "cswa", "phd-copies": 3, "phd-window": 4, "phd-chunk": 8},
    "phd_naive_2": {"norm-scheme": "pre-norm", "init-method": "normal", "phd": "naive",
                    "phd-copies": 2},
    "olmo2": {"norm-scheme": "olmo2", "init-method": "normal"},
    "sparse_swa_2": {"norm-scheme": "hybridnorm", "init-method": "depth-scaled", "num-layers": 3,
                     "phd": "swa", "phd-copies": 2, "phd-window": 3,
                     "sparse-pattern": "sink-window", "sparse-full-layers": 1, "sparse-block": 4,
                     "sparse-sink-blocks": 1, "sparse-window-blocks": 2},
    "post_norm_untied_z": {"norm-scheme": "post-norm", "init-method": "megatron",
                           "untie-embeddings-and-output-weights": True, "z-loss-coeff": 0.01},
}


# ------------------------------------------------------------------------ counter random numbers
def hash_name(name):
    """64-bit FNV-1a."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def philox(name, index, attempt):
    """Four uint32 per element: Philox4x32-10 at counter (index, attempt, stream)."""
    stream = hash_name(name)
    key = SEED ^ (stream & 0xFFFFFFFF00000000)
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    index = np.asarray(index, dtype=np.uint64)
    counter = [index & low, index >> half, np.full_like(index, attempt),
               np.full_like(index, stream & 0xFFFFFFFF)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * counter[0]
        product1 = np.uint64(0xCD9E8D57) * counter[2]
        counter = [(product1 >> half) ^ counter[1] ^ np.uint64(k0), product1 & low,
                   (product0 >> half) ^ counter[3] ^ np.uint64(k1), product0 & low]
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return counter


def uniform(name, index):
    bits = philox(name, index, 0)
    word = (bits[0] << np.uint64(32)) | bits[1]
    return ((word >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def truncated_normal(name, shape, stddev, cut=3.0):
    """stddev * N(0,1) cut at +-cut, computed in double, rounded once to float32."""
    count = int(np.prod(shape))
    draws = np.full(count, np.nan)
    attempt = 0
    while np.isnan(draws).any():
        open_ones = np.flatnonzero(np.isnan(draws))
        bits = philox(name, open_ones, attempt)
        radius = np.sqrt(-2.0 * np.log((bits[0].astype(np.float64) + 0.5) * 2.0**-32))
        angle = 2.0 * math.pi * (bits[1].astype(np.float64) + 0.5) * 2.0**-32
        first, second = radius * np.cos(angle), radius * np.sin(angle)
        draws[open_ones] = np.where(np.abs(first) <= cut, first,
                                    np.where(np.abs(second) <= cut, second, np.nan))
        attempt += 1
    return (stddev * draws).astype(np.float32).reshape(shape)


def batch(step):
    """Micro-batches of (tokens, targets), both [sequences, positions]; target -1 takes no loss."""
    shape = (MICRO_BATCHES, SEQUENCES, POSITIONS + 1)
    first = (step % DISTINCT_BATCHES) * int(np.prod(shape))
    index = first + np.arange(int(np.prod(shape))).reshape(shape)
    rows = (uniform("golden.tokens", index) * SHAPE["vocab-size"]).astype(np.int64)
    ignored = uniform("golden.ignored", index) < IGNORED_SHARE
    targets = np.where(ignored, -1, rows)[:, :, 1:]
    return [(torch.tensor(rows[m, :, :-1]), torch.tensor(targets[m])) for m in range(MICRO_BATCHES)]


# ------------------------------------------------------------------------------------------- model
def placement(config, layer):
    """Switches of one layer: attention norm and residual, feed-forward norm and residual, head
    norms of q, k, v (None, "head", "full"), output norms."""
    scheme = config["norm-scheme"]
    plain = dict(an=True, ar=False, fn=True, fr=False, qk=None, v=None, out=False)
    hybrid = dict(plain, an=False, fr=True, qk="head", v="head")
    if scheme == "pre-norm":
        return plain
    if scheme == "post-norm":  # N(x + F(x)) everywhere; the last one is the model's final norm
        return dict(plain, an=layer > 0, ar=layer > 0, fr=True)
    if scheme == "hybridnorm":
        return hybrid
    if scheme == "hybridnorm-star":
        return dict(hybrid, an=True, fr=False) if layer == 0 else hybrid
    if scheme == "olmo2":
        return dict(plain, an=False, fn=False, qk="full", out=True)
    raise ValueError(scheme)


def parameter_specs(config):
    """[(name, shape, stddev or None for ones)]."""
    hidden, ffn, head = config["hidden-size"], config["ffn-hidden-size"], config["kv-channels"]
    layers, padded = config["num-layers"], config["make-vocab-size-divisible-by"]
    q_width, kv_width = config["num-attention-heads"] * head, config["num-query-groups"] * head
    sigma = 1.0 / math.sqrt(2.5 * hidden)
    specs = [("embedding.weight", (padded, hidden), sigma)]
    for layer in range(layers):
        depth = {"normal": 0.5, "depth-scaled": layer + 1, "megatron": layers}
        out_sigma = sigma / math.sqrt(2 * depth[config["init-method"]])
        switches = placement(config, layer)
        a, m = f"layers.{layer:02d}.attention.", f"layers.{layer:02d}.mlp."
        specs += [(a + "q.weight", (q_width, hidden), sigma),
                  (a + "k.weight", (kv_width, hidden), sigma),
                  (a + "v.weight", (kv_width, hidden), sigma),
                  (a + "out.weight", (hidden, q_width), out_sigma),
                  (m + "gate.weight", (ffn, hidden), sigma),
                  (m + "up.weight", (ffn, hidden), sigma),
                  (m + "down.weight", (hidden, ffn), out_sigma)]
        if switches["an"]:
            specs.append((a + "norm.weight", (hidden,), None))
        if switches["fn"]:
            specs.append((m + "norm.weight", (hidden,), None))
        if switches["qk"]:
            full = switches["qk"] == "full"
            specs.append((a + "q_norm.weight", (q_width if full else head,), None))
            specs.append((a + "k_norm.weight", (kv_width if full else head,), None))
        if switches["v"]:
            specs.append((a + "v_norm.weight", (head,), None))
        if switches["out"]:
            specs += [(a + "output_norm.weight", (hidden,), None),
                      (m + "output_norm.weight", (hidden,), None)]
    specs.append(("final_norm.weight", (hidden,), None))
    if config["untie-embeddings-and-output-weights"]:
        specs.append(("head.weight", (padded, hidden), 1.0 / math.sqrt(hidden)))
    return specs


def initial_weights(config):
    return {name: torch.tensor(np.ones(shape, np.float32) if stddev is None else
                               truncated_normal(name, shape, stddev))
            for name, shape, stddev in parameter_specs(config)}


def visible(i, m, j, n, window, chunk):
    """Key copy i (1 = original) of position m -> query copy j of position n."""
    if i == 1:
        return m <= n
    if j == 1:
        return False
    if m == n:
        return i <= j
    if m > n or n - m >= window:
        return False
    return chunk is None or m // chunk == n // chunk


def mask(config, layer):
    """Boolean [K*S, K*S], rows are queries, position-major."""
    copies, mode, layers = config["phd-copies"], config["phd"], config["num-layers"]
    window = config["phd-window"] if mode in ("swa", "cswa") else 1
    chunk = config["phd-chunk"] if mode == "cswa" else None
    full = config.get("sparse-full-layers", layers)
    first_full = (layers - full) // 2
    sparse = config["sparse-pattern"] != "full" and not first_full <= layer < first_full + full

    def kept(n, m):  # LongGen's sink blocks and most recent blocks over original keys
        if not sparse:
            return True
        bq, bk = n // config["sparse-block"], m // config["sparse-block"]
        return bk < config["sparse-sink-blocks"] or bq - bk < config["sparse-window-blocks"]

    rows = [(n, j) for n in range(POSITIONS) for j in range(1, copies + 1)]
    result = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for q, (n, j) in enumerate(rows):
        for k, (m, i) in enumerate(rows):
            if mode == "naive":
                result[q, k] = k <= q
            else:
                result[q, k] = visible(i, m, j, n, window, chunk) and (i != 1 or kept(n, m))
    return result


def rms_norm(x, weight, epsilon):
    wide = x if x.dtype == torch.float64 else x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (scaled.to(x.dtype)) * weight


def rope(x, base, copies):
    """x [B, heads, S*K, D]; every copy at its token's position; half-split pairs. cos and sin are
    float32 numbers in every precision, as methods prescribe."""
    half = x.shape[-1] // 2
    frequency = base ** (-np.arange(half) / half)
    angle = np.repeat(np.arange(POSITIONS), copies)[:, None] * frequency
    wide = x if x.dtype == torch.float64 else x.float()
    cos = torch.tensor(np.cos(angle).astype(np.float32)).to(wide.dtype)
    sin = torch.tensor(np.sin(angle).astype(np.float32)).to(wide.dtype)
    first, second = wide[..., :half], wide[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def attention(config, weights, layer, x, visible_rows):
    switches, prefix = placement(config, layer), f"layers.{layer:02d}.attention."
    head, copies, epsilon = config["kv-channels"], config["phd-copies"], config["norm-epsilon"]

    def heads(name, kind):
        y = x @ weights[prefix + name + ".weight"].T
        if kind == "full":
            y = rms_norm(y, weights[prefix + name + "_norm.weight"], epsilon)
        y = y.unflatten(-1, (-1, head)).transpose(1, 2)  # [B, heads, rows, D]
        if kind == "head":
            y = rms_norm(y, weights[prefix + name + "_norm.weight"], epsilon)
        return y

    q = rope(heads("q", switches["qk"]), config["rotary-base"], copies)
    k = rope(heads("k", switches["qk"]), config["rotary-base"], copies)
    v = heads("v", switches["v"])
    repeat = config["num-attention-heads"] // config["num-query-groups"]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(head)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    probabilities = scores.masked_fill(~visible_rows, -math.inf).softmax(-1).to(x.dtype)
    context = (probabilities @ v).transpose(1, 2).flatten(2)
    return context @ weights[prefix + "out.weight"].T


def mlp(weights, layer, x):
    prefix = f"layers.{layer:02d}.mlp."
    gate, up = x @ weights[prefix + "gate.weight"].T, x @ weights[prefix + "up.weight"].T
    return (torch.nn.functional.silu(gate) * up) @ weights[prefix + "down.weight"].T


def transformer_layer(config, weights, layer, x, visible_rows):
    switches, prefix = placement(config, layer), f"layers.{layer:02d}."

    def norm(y, name):
        return rms_norm(y, weights[prefix + name + ".weight"], config["norm-epsilon"])

    a = norm(x, "attention.norm") if switches["an"] else x
    branch = attention(config, weights, layer, a, visible_rows)
    if switches["out"]:
        branch = norm(branch, "attention.output_norm")
    y = (a if switches["ar"] else x) + branch
    f = norm(y, "mlp.norm") if switches["fn"] else y
    branch = mlp(weights, layer, f)
    if switches["out"]:
        branch = norm(branch, "mlp.output_norm")
    return (f if switches["fr"] else y) + branch


def loss_sums(config, weights, masks, tokens, targets):
    """Sums over rows with a target: (cross-entropy, logsumexp^2)."""
    copies = config["phd-copies"]
    x = weights["embedding.weight"][tokens].repeat_interleave(copies, 1)  # [B, S*K, H]
    for layer in range(config["num-layers"]):
        x = transformer_layer(config, weights, layer, x, masks[layer])
    last = x[:, copies - 1::copies]
    last = rms_norm(last, weights["final_norm.weight"], config["norm-epsilon"])
    table = weights["head.weight"] if "head.weight" in weights else weights["embedding.weight"]
    logits = last @ table[:config["vocab-size"]].T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    counted = targets >= 0
    log_sum = logits.logsumexp(-1)[counted]
    hit = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0][counted]
    return (log_sum - hit).sum(), log_sum.square().sum()


# ---------------------------------------------------------------------------------------- training
def learning_rate(updates):
    """Of the update after `updates` updates: linear warm-up, then cosine (Megatron's counting)."""
    warmup, total = OPTIMIZER["lr-warmup-iters"], OPTIMIZER["lr-decay-iters"]
    peak, floor, start = OPTIMIZER["lr"], OPTIMIZER["min-lr"], OPTIMIZER["lr-warmup-init"]
    if updates <= warmup:
        return start + (peak - start) * updates / warmup
    done = (updates - warmup) / (total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done))


def adamw(state, name, master, gradient, rate, step):
    """Decoupled weight decay (Loshchilov & Hutter 2019); the embedding is not decayed."""
    beta1, beta2 = OPTIMIZER["adam-beta1"], OPTIMIZER["adam-beta2"]
    first, second = state.setdefault(name, (torch.zeros_like(master), torch.zeros_like(master)))
    first.mul_(beta1).add_(gradient, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    decay = 0.0 if name == "embedding.weight" else OPTIMIZER["weight-decay"]
    root = (second / (1 - beta2**step)).sqrt()
    update = (first / (1 - beta1**step)) / (root + OPTIMIZER["adam-eps"])
    master.sub_(rate * (update + decay * master))


def train(config, dtype):
    """Per step: (loss, gradient norm, learning rate). Masters are float64 or float32."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    masters = {name: value.to(wide) for name, value in initial_weights(config).items()}
    masks = [mask(config, layer) for layer in range(config["num-layers"])]
    state, history = {}, []
    for step in range(1, STEPS + 1):
        micro_batches = batch(step - 1)
        tokens = sum(int((targets >= 0).sum()) for _, targets in micro_batches)
        gradients = {name: torch.zeros_like(value) for name, value in masters.items()}
        cross_entropy = 0.0
        for ids, targets in micro_batches:
            weights = {n: w.detach().clone().to(dtype).requires_grad_(True)
                       for n, w in masters.items()}
            ce, z = loss_sums(config, weights, masks, ids, targets)
            ((ce + config["z-loss-coeff"] * z) / tokens).backward()
            cross_entropy += ce.item()
            for name, weight in weights.items():
                gradients[name] += weight.grad.to(wide)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        clip = min(1.0, OPTIMIZER["clip-grad"] / norm)
        rate = learning_rate(step - 1)
        for name, master in masters.items():
            adamw(state, name, master, gradients[name] * clip, rate, step)
        history.append((cross_entropy / tokens, norm, rate))
    return history


def deviation(history, reference, column):
    return max(abs(a[column] - b[column]) / abs(b[column]) for a, b in zip(history, reference))


def run_all():
    result = {"seed": SEED, "steps": STEPS, "micro_batches": MICRO_BATCHES, "sequences": SEQUENCES,
              "positions": POSITIONS, "distinct_batches": DISTINCT_BATCHES,
              "ignored_share": IGNORED_SHARE, "optimizer": OPTIMIZER, "cases": {}}
    for name, overrides in CASES.items():
        config = {**SHAPE, **overrides}
        reference = train(config, torch.float64)
        case = {"model": config}
        for column, key in enumerate(("losses", "gradient_norms", "learning_rates")):
            case[key] = [row[column] for row in reference]
        for dtype in (torch.float32, torch.bfloat16):
            history = train(config, dtype)
            case[str(dtype).removeprefix("torch.")] = {
                "loss_deviation": deviation(history, reference, 0),
                "norm_deviation": deviation(history, reference, 1)}
        result["cases"][name] = case
        losses, norms = case["losses"], case["gradient_norms"]
        print(f"{name:20s} loss {losses[0]:.6f} -> {losses[-1]:.6f}  norm {norms[0]:.4f} -> "
              f"{norms[-1]:.4f}  loss deviation f32 {case['float32']['loss_deviation']:.1e}, "
              f"bf16 {case['bfloat16']['loss_deviation']:.1e}", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write golden_losses.json")
    arguments = parser.parse_args()
    path = Path(__file__).with_suffix(".json")
    result = run_all()
    if arguments.write:
        path.write_text(json.dumps(result, indent=1) + "\n")
        return
    stored = json.loads(path.read_text())
    worst = max(abs(a - b) / abs(b) for name, case in result["cases"].items()
                for key in ("losses", "gradient_norms")
                for a, b in zip(case[key], stored["cases"][name][key]))
    print(f"largest relative difference to {path.name}: {worst:.2e}")
    if worst > 1e-9:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
