"""What makers and users of GPUs have published about them: for plans, not for claims.

Sources: NVIDIA's data sheets "A100 Tensor Core GPU" (80 GB SXM), "H100 Tensor Core GPU" (SXM) and
"H200 Tensor Core GPU": dense bfloat16 peak without sparsity, memory, NVLink in both directions
together.  Share of the peak in training: A100, NeMo's ViT-g/14, 44.5 % (NeMo documentation, ViT
performance); H100, torchtitan's Llama 3 8B in bfloat16, 33 to 39 % (benchmarks/llama3_h100_202412).
None of these numbers was measured here.
"""

from dataclasses import dataclass

ASSUMED_COPY_BYTES = 20e9
"""A second, from host memory to a GPU: PCIe 4.0 x16 has 32 GB/s."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: What it is called.
        peak_flops: Dense bfloat16 operations a second, published.
        memory_bytes: Published.
        nvlink_bytes: A second, of one GPU to others of its node, one way: half of what is
            published.
        assumed_share: Of the peak, that a training step reaches.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    nvlink_bytes: float
    assumed_share: float


GPUS = {
    "a100": Gpu(
        name="A100 80 GB SXM",
        peak_flops=312e12,
        memory_bytes=80e9,
        nvlink_bytes=300e9,
        assumed_share=0.40,
    ),
    "h100": Gpu(
        name="H100 80 GB SXM",
        peak_flops=989e12,
        memory_bytes=80e9,
        nvlink_bytes=450e9,
        assumed_share=0.35,
    ),
    "h200": Gpu(
        name="H200 141 GB SXM",
        peak_flops=989e12,
        memory_bytes=141e9,
        nvlink_bytes=450e9,
        assumed_share=0.35,
    ),
}
"""By the names that `vit21k bench --gpu` takes."""
