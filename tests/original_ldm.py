"""The networks of latent diffusion as CompVis' code computes them, restated from the papers and its published names.

Only the names of modules and what they compute are the original's: a ``state_dict`` has the names of its checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=eps)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Swish(nn.Module):
    def forward(self, x):
        return swish(x)


def time_features(t: Tensor, width: int) -> Tensor:
    """Cosines before sines, of frequencies 10000^(-k / (width / 2))."""
    frequencies = torch.tensor([10000 ** (-k / (width // 2)) for k in range(width // 2)], dtype=torch.float64)
    angles = t[:, None] * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


# ---- the U-Net


class ResBlock(nn.Module):
    """Of ``resample`` "up" or "down", both branches are resampled, between the first norm and its convolution."""

    def __init__(self, inner, outer, time, shift_scale=False, resample=None):
        super().__init__()
        self.in_layers = nn.Sequential(norm(inner), Swish(), nn.Conv2d(inner, outer, 3, padding=1))
        self.emb_layers = nn.Sequential(Swish(), nn.Linear(time, 2 * outer if shift_scale else outer))
        self.out_layers = nn.Sequential(norm(outer), Swish(), nn.Identity(), nn.Conv2d(outer, outer, 3, padding=1))
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)
        self.shift_scale, self.resample = shift_scale, resample

    def resampled(self, x):
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.resample == "up" else x

    def forward(self, x, time, context):
        h = self.in_layers[2](self.resampled(swish(self.in_layers[0](x))))
        time = self.emb_layers(time)[:, :, None, None]
        if self.shift_scale:
            scale, shift = time.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + time)
        return self.skip_connection(self.resampled(x)) + self.out_layers[3](swish(h))


class AttentionBlock(nn.Module):
    """Attention among pixels; ``heads_outside``: of the newer of the two orders of its projections' rows."""

    def __init__(self, channels, heads, heads_outside=False):
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.heads, self.heads_outside = heads, heads_outside

    def forward(self, x, time, context):
        batch, channels, *size = x.shape
        flat = x.reshape(batch, channels, -1)
        rows, width, found = self.qkv(self.norm(flat)), channels // self.heads, []
        for head in range(self.heads):
            places = [(part * self.heads + head) if self.heads_outside else (3 * head + part) for part in range(3)]
            q, k, v = (rows[:, place * width : (place + 1) * width] for place in places)
            scale = 1 / math.sqrt(math.sqrt(width))
            weights = torch.softmax((q * scale).transpose(1, 2) @ (k * scale), dim=-1)
            found.append(v @ weights.transpose(1, 2))
        return (flat + self.proj_out(torch.cat(found, dim=1))).reshape(batch, channels, *size)


class CrossAttention(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Identity())
        self.heads = heads

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        parts = zip(*(each.chunk(self.heads, dim=-1) for each in (q, k, v)), strict=True)
        heads = [torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v for q, k, v in parts]
        return self.to_out(torch.cat(heads, dim=-1))


class GEGLU(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * (gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))))


class Feedforward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width, width, heads), CrossAttention(width, context, heads)
        self.ff = Feedforward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x), self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """``linear``: its projections are of tokens, as in Stable Diffusion 2, and not of pixels."""

    def __init__(self, channels, heads, context, depth=1, linear=False):
        super().__init__()
        self.norm = norm(channels, eps=1e-6)
        self.proj_in, self.proj_out = (
            nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, context, heads) for _ in range(depth))
        self.linear = linear

    def forward(self, x, time, context):
        h, size = self.norm(x), x.shape
        if not self.linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)
        if self.linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).reshape(size)
        return x + (h if self.linear else self.proj_out(h))


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, time, context):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, time=None, context=None):
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class First(nn.Conv2d):
    def forward(self, x, time, context):
        return super().forward(x)


class UNet(nn.Module):
    """Arguments are called as in the original's YAML files."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings
        width, time = settings["model_channels"], 4 * settings["model_channels"]
        widths, layers = [width * multiple for multiple in settings["channel_mult"]], settings["num_res_blocks"]
        self.time_embed = nn.Sequential(nn.Linear(width, time), Swish(), nn.Linear(time, time))
        scale_shift, resampling = settings.get("use_scale_shift_norm", False), settings.get("resblock_updown", False)

        def level(inner, outer, number):
            found: list[nn.Module] = [ResBlock(inner, outer, time, scale_shift)]
            return [*found, self.attention(outer)] if 2**number in settings["attention_resolutions"] else found

        def resample(channels, way, plain):
            return ResBlock(channels, channels, time, scale_shift, way) if resampling else plain(channels)

        blocks, skips, channels = [[First(settings["in_channels"], width, 3, padding=1)]], [width], width
        for number, outer in enumerate(widths):
            for _ in range(layers):
                blocks.append(level(channels, outer, number))
                channels = outer
                skips.append(channels)
            if number < len(widths) - 1:
                blocks.append([resample(channels, "down", Downsample)])
                skips.append(channels)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        middle = ResBlock(channels, channels, time, scale_shift)
        self.middle_block = nn.ModuleList(
            [middle, self.attention(channels), ResBlock(channels, channels, time, scale_shift)]
        )
        blocks = []
        for number, outer in reversed([*enumerate(widths)]):
            for layer in range(layers + 1):
                found = level(channels + skips.pop(), outer, number)
                channels = outer
                if number and layer == layers:
                    found.append(resample(channels, "up", Upsample))
                blocks.append(found)
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.out = nn.Sequential(norm(channels), Swish(), nn.Conv2d(channels, settings["out_channels"], 3, padding=1))

    def attention(self, channels):
        settings = self.settings
        width = settings.get("num_head_channels", -1)
        heads = settings["num_heads"] if width == -1 else channels // width
        if not settings.get("use_spatial_transformer"):
            return AttentionBlock(channels, heads, settings.get("use_new_attention_order", False))
        linear, depth = settings.get("use_linear_in_transformer", False), settings.get("transformer_depth", 1)
        return SpatialTransformer(channels, heads, settings["context_dim"], depth, linear)

    def forward(self, x, t, context=None):
        time = self.time_embed(time_features(t, self.settings["model_channels"]).to(x))
        skips = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, time, context)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, time, context)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in block:
                x = layer(x, time, context)
        return self.out(x)


# ---- the autoencoders


class PixelResBlock(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.norm1, self.norm2 = norm(inner, 1e-6), norm(outer, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        h = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class PixelAttention(nn.Module):
    """Of one head."""

    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class Halving(nn.Module):
    """Padded at the right and the bottom only."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block_1, self.attn_1 = PixelResBlock(channels, channels), PixelAttention(channels)
        self.block_2 = PixelResBlock(channels, channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    def __init__(self, inner, outer, layers, attends, **sampling):
        super().__init__()
        self.block = nn.ModuleList(PixelResBlock(outer if layer else inner, outer) for layer in range(layers))
        self.attn = nn.ModuleList(PixelAttention(outer) for _ in range(layers if attends else 0))
        for name, module in sampling.items():
            setattr(self, name, module)

    def forward(self, x):
        for number, block in enumerate(self.block):
            x = block(x)
            x = self.attn[number](x) if len(self.attn) else x
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Encoder(nn.Module):
    def __init__(self, channels, widths, layers, attends, outer):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down = nn.ModuleList(
            Level(
                widths[max(0, number - 1)],
                width,
                layers,
                number in attends,
                **({"downsample": Halving(width)} if number < last else {}),
            )
            for number, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1], 1e-6), nn.Conv2d(widths[-1], outer, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(swish(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, channels, widths, layers, attends, inner):
        super().__init__()
        self.conv_in, self.mid = nn.Conv2d(inner, widths[-1], 3, padding=1), Middle(widths[-1])
        last = len(widths) - 1
        self.up = nn.ModuleList(
            Level(
                widths[min(last, number + 1)],
                width,
                layers + 1,
                number in attends,
                **({"upsample": Upsample(width)} if number else {}),
            )
            for number, width in enumerate(widths)
        )
        self.norm_out, self.conv_out = norm(widths[0], 1e-6), nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(swish(self.norm_out(x)))


class Codes(nn.Module):
    def __init__(self, number, width):
        super().__init__()
        self.embedding = nn.Embedding(number, width)

    def forward(self, x):
        flat = x.permute(0, 2, 3, 1)
        distances = (flat[..., None, :] - self.embedding.weight).square().sum(-1)
        return self.embedding(distances.argmin(-1)).permute(0, 3, 1, 2)


class Autoencoder(nn.Module):
    """With ``codes``, whose latents are replaced by the nearest when they are decoded, else with a distribution."""

    def __init__(self, widths=(32, 64), layers=1, attends=(), latent=3, codes=None):
        super().__init__()
        double = 1 if codes else 2
        self.encoder = Encoder(3, widths, layers, attends, double * latent)
        self.decoder = Decoder(3, widths, layers, attends, latent)
        self.quant_conv = nn.Conv2d(double * latent, double * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        if codes:
            self.quantize = Codes(codes, latent)

    def encode(self, images):
        """The latents, or the means and the logarithms of the variances of their distribution."""
        return self.quant_conv(self.encoder(images))

    def decode(self, latents):
        latents = self.quantize(latents) if hasattr(self, "quantize") else latents
        return self.decoder(self.post_quant_conv(latents))
