"""A model's architecture, as far as weights, layouts and Megatron need to know it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.architectures import FAMILIES, Family


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary wavelengths (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class Experts:
    """Mixture of ``count`` experts of feed-forward width ``ffn``, ``per_token`` of which see a token.

    ``normalize``: the weights of the chosen ones are scaled to a sum of 1.
    """

    count: int
    per_token: int
    ffn: int
    normalize: bool = True


@dataclass(frozen=True)
class ModelShape:
    """Sizes are counts; ``max_positions`` is the longest sequence in tokens, ``ffn`` the gated feed-forward width.

    With ``experts`` every layer is a mixture of them, and ``ffn`` is unused.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    max_positions: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tied_embeddings: bool = False
    rope_scaling: RopeScaling | None = None
    experts: Experts | None = None

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    @property
    def parameters(self) -> int:
        """Those that a token is multiplied with, half of its FLOPs forward.

        The matrices of the layers, of experts those that see the token, and the output layer; neither norms and biases
        nor the table of embeddings.
        """
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        if self.experts is None:
            feed_forward = 3 * self.hidden * self.ffn
        else:
            feed_forward = self.hidden * (3 * self.experts.ffn * self.experts.per_token + self.experts.count)
        return self.layers * (attention + feed_forward) + self.hidden * self.vocab

    @property
    def qkv_bias(self) -> bool:
        return self.family.qkv_bias

    @property
    def qk_norm(self) -> bool:
        return self.family.qk_norm
