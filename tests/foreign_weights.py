"""Small weights by the names of others' files, and what these methods compute, written plainly."""

import torch
import torch.nn.functional as F

DIM, DEPTH, HEADS, PATCH_PX, SIDE_PX = 128, 3, 2, 8, 32
GRID = SIDE_PX // PATCH_PX


def images(seed=0, side_px=SIDE_PX):
    return torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(seed))


def drawn(shapes, seed=0, scale=0.1):
    """Random values of these shapes; scales of norms and variances around 1."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in shapes.items():
        value = scale * torch.randn(shape, generator=generator)
        is_scale = len(shape) == 1 and name.endswith((".weight", "running_var"))
        values[name] = (value.abs() + 1) if is_scale else value
    return values


def block_shapes(name, depth, dim, hidden):
    """Of the blocks of a Vision Transformer, as DINO, MAE and I-JEPA write them."""
    shapes = {}
    for n in range(depth):
        for part, out, into in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", hidden, dim),
            ("mlp.fc2", dim, hidden),
        ):
            shapes |= {f"{name}.{n}.{part}.weight": (out, into), f"{name}.{n}.{part}.bias": (out,)}
        for part in ("norm1", "norm2"):
            shapes |= {f"{name}.{n}.{part}.{kind}": (dim,) for kind in ("weight", "bias")}
    return shapes


def vit_shapes(dim=DIM, depth=DEPTH, patch_px=PATCH_PX, grid=GRID, hidden=None):
    """Names and shapes of facebookresearch/dino's VisionTransformer, and of its copies."""
    return {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, grid**2 + 1, dim),
        "patch_embed.proj.weight": (dim, 3, patch_px, patch_px),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        **block_shapes("blocks", depth, dim, hidden or 4 * dim),
    }


def beit_shapes(dim=DIM, depth=DEPTH, patch_px=PATCH_PX, grid=GRID, heads=HEADS, shared=False):
    """Of BEiT's: biases of queries and values alone, a scale on each branch."""
    shapes = vit_shapes(dim, depth, patch_px, grid)
    for n in range(depth):
        del shapes[f"blocks.{n}.attn.qkv.bias"]
        for name in ("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2"):
            shapes[f"blocks.{n}.{name}"] = (dim,)
    if shared:
        del shapes["pos_embed"]
        table = "rel_pos_bias.relative_position_bias_table"
        shapes[table] = ((2 * grid - 1) ** 2 + 3, heads)
    return shapes


def plain_vit(weights, pixels, heads=HEADS):
    """Class tokens of all blocks after the final norm: (B, depth, dim)."""
    dim = weights["cls_token"].shape[-1]
    tokens = F.conv2d(
        pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"],
        stride=weights["patch_embed.proj.weight"].shape[-1],
    ).flatten(2).transpose(1, 2)  # fmt: skip
    tokens = torch.cat([weights["cls_token"].expand(len(tokens), -1, -1), tokens], dim=1)
    tokens = tokens + weights["pos_embed"]
    found = []
    for n in range(sum(name.endswith("norm1.weight") for name in weights)):
        w = {k.removeprefix(f"blocks.{n}."): v for k, v in weights.items()}
        tokens = tokens + w.get("gamma_1", 1) * plain_attention(w, norm(tokens, w, "norm1"), heads)
        hidden = F.gelu(linear(norm(tokens, w, "norm2"), w, "mlp.fc1"))
        tokens = tokens + w.get("gamma_2", 1) * linear(hidden, w, "mlp.fc2")
        found.append(
            F.layer_norm(tokens, (dim,), weights["norm.weight"], weights["norm.bias"], 1e-6)
        )
    return torch.stack([one[:, 0] for one in found], dim=1)


def plain_attention(w, tokens, heads):
    batch, length, dim = tokens.shape
    if "attn.q_bias" in w:
        bias = torch.cat([w["attn.q_bias"], torch.zeros(dim), w["attn.v_bias"]])
    else:
        bias = w["attn.qkv.bias"]
    qkv = F.linear(tokens, w["attn.qkv.weight"], bias)
    query, key, value = qkv.reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) * (dim // heads) ** -0.5).softmax(dim=-1)
    return linear((weights @ value).transpose(1, 2).reshape(batch, length, dim), w, "attn.proj")


def linear(x, w, name):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def resnet_shapes(names, depths=(1, 2, 1, 1), width=8):
    """Of a ResNet of bottlenecks; `names` gives (convolution, norm) by stage, block and layer."""
    shapes = {}

    def add(stage, block, layer, out, into, side):
        conv, batch_norm = names(stage, block, layer)
        shapes[f"{conv}.weight"] = (out, into, side, side)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{batch_norm}.{part}"] = (out,)

    add(None, None, None, width, 3, 7)
    into = width
    for stage, depth in enumerate(depths):
        planes = width * 2**stage
        for block in range(depth):
            add(stage, block, 1, planes, into, 1)
            add(stage, block, 2, planes, planes, 3)
            add(stage, block, 3, 4 * planes, planes, 1)
            if block == 0:
                add(stage, block, "shortcut", 4 * planes, into, 1)
            into = 4 * planes
    return shapes


def byol_names(stage, block, layer):
    """Of ajtejankar/byol-convert, which are torchvision's."""
    if stage is None:
        return "conv1", "bn1"
    start = f"layer{stage + 1}.{block}"
    if layer == "shortcut":
        return f"{start}.downsample.0", f"{start}.downsample.1"
    return f"{start}.conv{layer}", f"{start}.bn{layer}"


def simclr_names(stage, block, layer):
    """Of Separius/SimCLRv2-Pytorch, without selective kernels."""
    if stage is None:
        return "net.0.0", "net.0.1.0"
    start = f"net.{stage + 1}.blocks.{block}"
    if layer == "shortcut":
        return f"{start}.projection.shortcut", f"{start}.projection.bn.0"
    return f"{start}.net.{2 * layer - 2}", f"{start}.net.{2 * layer - 1}.0"


def plain_resnet(weights, names, pixels, pad, depths=(1, 2, 1, 1)):
    """The average of the last map: (B, dim). `pad(x, side, stride)` comes before a convolution."""

    def layer(x, place, side, stride):
        conv, batch_norm = names(*place)
        x = F.conv2d(pad(x, side, stride), weights[f"{conv}.weight"], stride=stride)
        w = [weights[f"{batch_norm}.{part}"][:, None, None] for part in
             ("running_mean", "running_var", "weight", "bias")]  # fmt: skip
        return (x - w[0]) / (w[1] + 1e-5).sqrt() * w[2] + w[3]

    x = layer(pixels, (None, None, None), 7, 2).relu()
    x = F.max_pool2d(pad_same(x, 3, 2, value=-torch.inf), 3, 2)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            shortcut = x if block else layer(x, (stage, block, "shortcut"), 1, stride)
            y = layer(x, (stage, block, 1), 1, 1).relu()
            y = layer(y, (stage, block, 2), 3, stride).relu()
            x = (shortcut + layer(y, (stage, block, 3), 1, 1)).relu()
    return x.mean(dim=(2, 3))


def pad_same(x, side, stride, value=0.0):
    """TensorFlow's SAME: as much as is needed for ceil(size / stride), the odd pixel at the end."""
    sizes = x.shape[-2:]
    total = [max((-(-size // stride) - 1) * stride + side - size, 0) for size in sizes]
    (top, left) = (part // 2 for part in total)
    return F.pad(x, (left, total[1] - left, top, total[0] - top), value=value)


def pad_fixed(x, side, stride):
    """SimCLR's: by the side of the kernel alone."""
    del stride
    return F.pad(x, [(side - 1) // 2] * 4)
