"""Longformer's and BigBird's own self-attention against the converted one: time on one thread, and peak memory.

    python asv_bench/hugging_face.py          # needs the extra "transformers"

Base size (12 heads of 64), 4096 tokens, a window of 512 with one global token, blocks of 64. The whole layer, and the
layer without its projections, which are matrix products of PyTorch's and the same for both. Ratios of neighbouring
runs, medians of seven; memory above what the process took before, in a process for each.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import copy
import statistics
import subprocess
import sys
import time

import torch
from transformers import BigBirdConfig, LongformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from subquad.complexity.memory import _rise
from subquad.transformers import convert

N, ROUNDS = 4096, 7


class Copy(torch.nn.Module):
    """In place of a projection: the layer scales its queries in place."""

    def forward(self, x):
        return x.clone()


def layer_of(kind, projected):
    torch.manual_seed(0)
    if kind == "longformer":
        layer = LongformerSelfAttention(LongformerConfig(attention_window=[512], num_hidden_layers=1), 0)
        mask = torch.zeros(1, N)
        mask[0, 0] = 1e4 if projected else 0  # a global token has projections of its own
        given = {"is_index_masked": mask < 0, "is_index_global_attn": mask > 0, "is_global_attn": projected}
        given["attention_mask"] = mask
    else:
        layer = BigBirdBlockSparseAttention(BigBirdConfig(), 0)
        blocked, band, from_mask, to_mask = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, N), 64)
        given = {"band_mask": band, "from_mask": from_mask, "to_mask": to_mask}
        given |= {"from_blocked_mask": blocked, "to_blocked_mask": blocked}
    if not projected:
        layer.query, layer.key, layer.value = Copy(), Copy(), Copy()
    return layer.eval(), given


def seconds(layer, given, backward):
    x = torch.randn(1, N, 768, requires_grad=backward)
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = layer(x, **given)[0]
        if backward:
            out.sum().backward()
    return time.perf_counter() - start


def compare_time():
    for kind in ("longformer", "big_bird"):
        for projected in (True, False):
            theirs, given = layer_of(kind, projected)
            ours = convert(copy.deepcopy(theirs))
            for backward in (False, True):
                rounds = [(seconds(theirs, given, backward), seconds(ours, given, backward)) for _ in range(ROUNDS + 1)]
                a, b = (statistics.median(times) for times in zip(*rounds[1:], strict=True))
                ratio = statistics.median(x / y for x, y in rounds[1:])
                what = "layer" if projected else "layer without projections"
                both = "forward and backward" if backward else "forward"
                print(f"{kind}, {what}, {both}: {a * 1e3:.0f} ms and {b * 1e3:.0f} ms, {ratio:.1f} x", flush=True)


def compare_memory():
    for kind in ("longformer", "big_bird"):
        for backward in ("", "backward"):
            found = [
                subprocess.run([sys.executable, __file__, kind, which, backward], capture_output=True, text=True).stdout
                for which in ("theirs", "ours")
            ]
            a, b = (int(text) / 1e6 for text in found)
            print(
                f"{kind}, forward{' and backward' * bool(backward)}: {a:.0f} MB and {b:.0f} MB at the peak", flush=True
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 1:
        compare_time()
        compare_memory()
    else:
        layer, given = layer_of(sys.argv[1], True)
        if sys.argv[2] == "ours":
            convert(layer)
        # a child starts with its parent's ru_maxrss, so the peak is set back instead
        print(_rise(lambda: seconds(layer, given, bool(sys.argv[3]))).bytes)
