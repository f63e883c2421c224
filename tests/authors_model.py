"""The model of the CCR^k and CCLM authors: plain functions of tensors under their names, and random weights for it.

It is written from Swin's and XLM-R's papers and from the layout of the published files, for small sizes and without any
of the package's or timm's code.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]

EMBED, DEPTHS, HEADS = 8, (2, 2, 2, 1), (1, 2, 2, 4)  # of the image encoder
WIDTH, TEXT_HEADS, FEED_FORWARD, LAYERS, FUSION_LAYERS = 32, 4, 48, 2, 2
VOCABULARY, POSITIONS, PROJECTED = 50, 12, 16


def random_weights(*, image_size: int = 64, window: int = 2, fine_tuned: bool = False) -> Weights:
    """A checkpoint's ``model``, in the order in which the authors' modules come."""
    generator = torch.Generator().manual_seed(4)
    weights: Weights = {}

    def add(name, *shape, around=0.0):
        weights[name] = around + 0.3 * torch.randn(shape, generator=generator)

    def linear(name, to, of, bias=True):
        add(f"{name}.weight", to, of)
        if bias:
            add(f"{name}.bias", to)

    def norm(name, size):
        add(f"{name}.weight", size, around=1.0)
        add(f"{name}.bias", size)

    weights["temp"] = torch.tensor(0.05)
    add("vision_encoder.patch_embed.proj.weight", EMBED, 3, 4, 4)
    add("vision_encoder.patch_embed.proj.bias", EMBED)
    norm("vision_encoder.patch_embed.norm", EMBED)
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=False)):
        size, side = EMBED * 2**stage, image_size // 4 // 2**stage
        own = min(window, side)
        for block in range(depth):
            name = f"vision_encoder.layers.{stage}.blocks.{block}"
            norm(f"{name}.norm1", size)
            add(f"{name}.attn.relative_position_bias_table", (2 * own - 1) ** 2, heads)
            weights[f"{name}.attn.relative_position_index"] = relative_positions(own)
            if block % 2 and side > own:
                weights[f"{name}.attn_mask"] = mask_of_strangers(side, own)
            linear(f"{name}.attn.qkv", 3 * size, size)
            linear(f"{name}.attn.proj", size, size)
            norm(f"{name}.norm2", size)
            linear(f"{name}.mlp.fc1", 4 * size, size)
            linear(f"{name}.mlp.fc2", size, 4 * size)
        if stage < len(DEPTHS) - 1:
            linear(f"vision_encoder.layers.{stage}.downsample.reduction", 2 * size, 4 * size, bias=False)
            norm(f"vision_encoder.layers.{stage}.downsample.norm", 4 * size)
    norm("vision_encoder.norm", size)
    text = "text_encoder" if fine_tuned else "text_encoder.bert"
    weights[f"{text}.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    for name, rows in (("word", VOCABULARY), ("position", POSITIONS), ("token_type", 1)):
        add(f"{text}.embeddings.{name}_embeddings.weight", rows, WIDTH)
    norm(f"{text}.embeddings.LayerNorm", WIDTH)
    for layer in range(LAYERS + FUSION_LAYERS):
        name = f"{text}.encoder.layer.{layer}"
        for attention, of in [("attention", WIDTH), ("crossattention", size)][: 1 + (layer >= LAYERS)]:
            for part in ("query", "key", "value"):
                linear(f"{name}.{attention}.self.{part}", WIDTH, WIDTH if part == "query" else of)
            linear(f"{name}.{attention}.output.dense", WIDTH, WIDTH)
            norm(f"{name}.{attention}.output.LayerNorm", WIDTH)
        linear(f"{name}.intermediate.dense", FEED_FORWARD, WIDTH)
        linear(f"{name}.output.dense", WIDTH, FEED_FORWARD)
        norm(f"{name}.output.LayerNorm", WIDTH)
    if not fine_tuned:
        head = "text_encoder.cls.predictions"
        add(f"{head}.bias", VOCABULARY)
        linear(f"{head}.transform.dense", WIDTH, WIDTH)
        norm(f"{head}.transform.LayerNorm", WIDTH)
        weights[f"{head}.decoder.weight"] = weights[f"{text}.embeddings.word_embeddings.weight"]
        weights[f"{head}.decoder.bias"] = weights[f"{head}.bias"]
    linear("text_proj", PROJECTED, WIDTH)
    linear("vision_proj", PROJECTED, size)
    linear("itm_head.0", 2 * WIDTH, WIDTH)
    norm("itm_head.1", 2 * WIDTH)
    linear("itm_head.3", 2, 2 * WIDTH)
    return weights


def relative_positions(window: int) -> Tensor:
    """Which row of the table is for the cells i and j of a window."""
    cells = [(y, x) for y in range(window) for x in range(window)]
    span = 2 * window - 1
    return torch.tensor([[(y - v + window - 1) * span + x - u + window - 1 for v, u in cells] for y, x in cells])


def mask_of_strangers(side: int, window: int) -> Tensor:
    """-100 between cells of a window that the shift brought together from opposite edges."""
    edge = side - window // 2
    corners = [(top, left) for top in range(0, side, window) for left in range(0, side, window)]
    masks = []
    for top, left in corners:
        cells = [(y >= edge, x >= edge) for y in range(top, top + window) for x in range(left, left + window)]
        masks.append([[0.0 if one == other else -100.0 for other in cells] for one in cells])
    return torch.tensor(masks)


class AuthorsModel:
    """What the weights compute, in float64."""

    def __init__(self, weights: Weights) -> None:
        self.of = {name.replace(".bert.", "."): tensor.double() for name, tensor in weights.items()}
        rows = len(self.of["vision_encoder.layers.0.blocks.0.attn.relative_position_bias_table"])
        self.window = (int(rows**0.5) + 1) // 2

    def linear(self, name: str, states: Tensor) -> Tensor:
        return F.linear(states, self.of[f"{name}.weight"], self.of.get(f"{name}.bias"))

    def norm(self, name: str, states: Tensor) -> Tensor:
        mean, variance = states.mean(-1, keepdim=True), states.var(-1, unbiased=False, keepdim=True)
        return (states - mean) / (variance + 1e-5).sqrt() * self.of[f"{name}.weight"] + self.of[f"{name}.bias"]

    def image_states(self, images: Tensor) -> Tensor:
        proj = "vision_encoder.patch_embed.proj"
        grid = F.conv2d(images.double(), self.of[f"{proj}.weight"], self.of[f"{proj}.bias"], stride=4)
        grid = self.norm("vision_encoder.patch_embed.norm", grid.permute(0, 2, 3, 1))
        for stage, depth in enumerate(DEPTHS):
            for block in range(depth):
                grid = self.block(f"vision_encoder.layers.{stage}.blocks.{block}", grid, HEADS[stage], block % 2 == 1)
            if stage < len(DEPTHS) - 1:
                name = f"vision_encoder.layers.{stage}.downsample"
                corners = [grid[:, y::2, x::2] for y, x in ((0, 0), (1, 0), (0, 1), (1, 1))]
                grid = self.linear(f"{name}.reduction", self.norm(f"{name}.norm", torch.cat(corners, -1)))
        tokens = self.norm("vision_encoder.norm", grid).flatten(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)

    def block(self, name: str, grid: Tensor, heads: int, shifted: bool) -> Tensor:
        side = grid.shape[1]
        window = min(self.window, side)
        shift = window // 2 if shifted and side > window else 0
        normed = self.norm(f"{name}.norm1", grid)
        attended = torch.empty_like(grid)
        for top in range(0, side, window):
            for left in range(0, side, window):
                cells = [(y, x) for y in range(top, top + window) for x in range(left, left + window)]
                places = [((y + shift) % side, (x + shift) % side) for y, x in cells]
                ys, xs = zip(*places, strict=False)
                attended[:, ys, xs] = self.in_window(f"{name}.attn", normed[:, ys, xs], cells, side, shift, heads)
        grid = grid + attended
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", grid)))
        return grid + self.linear(f"{name}.mlp.fc2", hidden)

    def in_window(self, name: str, states: Tensor, cells: list, side: int, shift: int, heads: int) -> Tensor:
        """Attention among the cells of a window; those that the shift brought in from the other edge are strangers."""
        window = int(len(cells) ** 0.5)
        table = self.of[f"{name}.relative_position_bias_table"]
        bias = torch.empty(heads, len(cells), len(cells), dtype=torch.double)
        for i, (y, x) in enumerate(cells):
            for j, (v, u) in enumerate(cells):
                bias[:, i, j] = table[(y - v + window - 1) * (2 * window - 1) + x - u + window - 1]
                if any((a >= side - shift) != (b >= side - shift) for a, b in ((y, v), (x, u))):
                    bias[:, i, j] = -torch.inf
        query, key, value = self.linear(f"{name}.qkv", states).chunk(3, -1)
        return self.linear(f"{name}.proj", self.attend(query, key, value, heads, bias))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor) -> Tensor:
        queries, keys, values = (of.unflatten(-1, (heads, -1)).transpose(1, 2) for of in (query, key, value))
        weights = (queries @ keys.mT / queries.shape[-1] ** 0.5 + bias).softmax(-1)
        return (weights @ values).transpose(1, 2).flatten(2)

    def attention(self, name: str, states: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            self.linear(f"{name}.self.{part}", states if part == "query" else context)
            for part in ("query", "key", "value")
        )
        attended = self.linear(f"{name}.output.dense", self.attend(query, key, value, TEXT_HEADS, bias))
        return self.norm(f"{name}.output.LayerNorm", states + attended)

    def layer(self, number: int, states: Tensor, mask: Tensor, image_states: Tensor | None = None) -> Tensor:
        name = f"text_encoder.encoder.layer.{number}"
        bias = torch.where(mask[:, None, None, :], 0.0, -torch.inf)
        states = self.attention(f"{name}.attention", states, states, bias)
        if image_states is not None:
            states = self.attention(f"{name}.crossattention", states, image_states, torch.zeros(1))
        hidden = F.gelu(self.linear(f"{name}.intermediate.dense", states))
        return self.norm(f"{name}.output.LayerNorm", states + self.linear(f"{name}.output.dense", hidden))

    def text_states(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        name = "text_encoder.embeddings"
        words, positions, types = (
            self.of[f"{name}.{part}_embeddings.weight"] for part in ("word", "position", "token_type")
        )
        states = self.norm(f"{name}.LayerNorm", words[input_ids] + positions[: input_ids.shape[1]] + types[0])
        for number in range(LAYERS):
            states = self.layer(number, states, mask)
        return states

    def fused_states(self, text_states: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        for number in range(LAYERS, LAYERS + FUSION_LAYERS):
            text_states = self.layer(number, text_states, mask, image_states)
        return text_states

    def embeds(self, name: str, states: Tensor) -> Tensor:
        return F.normalize(self.linear(name, states[:, 0]), dim=-1)

    def match_logits(self, fused_states: Tensor) -> Tensor:
        hidden = self.norm("itm_head.1", self.linear("itm_head.0", fused_states[:, 0]))
        return self.linear("itm_head.3", F.gelu(hidden))

    def masked_lm_logits(self, fused_states: Tensor) -> Tensor:
        head = "text_encoder.cls.predictions"
        hidden = self.norm(f"{head}.transform.LayerNorm", F.gelu(self.linear(f"{head}.transform.dense", fused_states)))
        return self.linear(f"{head}.decoder", hidden)
