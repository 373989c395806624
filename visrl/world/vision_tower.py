"""A vision tower for pictures of 64 pixels: a convolutional stem, then a few transformer blocks.

Overlapping 3x3 convolutions see edges that an 8x8 patch embedding learns slowly. Registered with
AutoConfig and AutoModel, so that LLaVA's own from_pretrained finds it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class ConvStemConfig(PreTrainedConfig):
    """Sizes of :class:`ConvStemModel`; ``patch_size`` is the stem's total stride, a power of two."""

    model_type = "visrl_conv_stem"

    def __init__(
        self,
        hidden_size: int = 96,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        intermediate_size: int = 288,
        image_size: int = 64,
        patch_size: int = 8,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.image_size = image_size
        self.patch_size = patch_size
        super().__init__(**kwargs)


def positions_2d(side: int, width: int) -> torch.Tensor:
    """Sine and cosine of row and column for a square of patches, [side * side, width]; ``width`` divides by four."""
    quarter = width // 4
    omega = 1.0 / (100 ** (torch.arange(quarter) / quarter))
    y, x = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]  # each [side * side, quarter]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


class Residual(nn.Module):
    """x + gelu(3x3 convolution of x), same size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.gelu(self.conv(x))


class ConvStemModel(PreTrainedModel):
    """pixel_values [B, 3, S, S] -> hidden states [B, (S / patch)^2, hidden_size], row by row."""

    config_class = ConvStemConfig
    base_model_prefix = "conv_stem"
    main_input_name = "pixel_values"
    _no_split_modules = ("TransformerEncoderLayer",)
    _supports_sdpa = True

    def __init__(self, config: ConvStemConfig) -> None:
        super().__init__(config)
        halvings = int(math.log2(config.patch_size))
        widths = [3, *(min(config.hidden_size, 24 * 2**i) for i in range(halvings - 1)), config.hidden_size]
        layers: list[nn.Module] = []
        for i in range(halvings):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1), nn.GELU()]
            if i == halvings - 2:
                layers.append(Residual(widths[i + 1]))
        # two more at the patches' own scale: from any patch of a thing its outline is then in view (15 + 2 * 2 * 8 = 47 px)
        self.stem = nn.Sequential(*layers, Residual(config.hidden_size), Residual(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size)
        # sines, never trained: files written when this was a parameter hold trained values, which loading has always replaced
        side = config.image_size // config.patch_size
        self.positions: torch.Tensor
        self.register_buffer("positions", torch.zeros(side**2, config.hidden_size))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Convolutions by He et al. (2015), positions as sines; PyTorch's own initialisation is right for the blocks.

        With PyTorch's the stem would shrink what it sees to a tenth of the positions added to it, and learn slowly.
        """
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif module is self:
            side = self.config.image_size // self.config.patch_size
            with torch.no_grad():  # not transformers' copy_, which leaves what a file has
                self.positions.copy_(0.5 * positions_2d(side, self.config.hidden_size))

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool = False, **_: Any
    ) -> BaseModelOutputWithPooling:
        hidden = self.norm(self.stem(pixel_values.to(self.dtype)).flatten(2).transpose(1, 2)) + self.positions
        states = [hidden]
        for block in self.blocks:
            hidden = block(hidden)
            states.append(hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=hidden.mean(1), hidden_states=tuple(states)
        )


AutoConfig.register("visrl_conv_stem", ConvStemConfig, exist_ok=True)
AutoModel.register(ConvStemConfig, ConvStemModel, exist_ok=True)
