"""Parameter groups and the learning-rate schedule, against lists written by hand."""

import pytest
import torch
from torch import nn

from ccr_lightning.errors import CCRError
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.optim import adamw, linear_warmup_decay, parameter_groups


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.convolution = nn.Conv2d(4, 4, 3)
        self.output = nn.Linear(4, 5)
        self.output.weight = self.embedding.weight  # tied: one parameter, two names
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def settings_by_name(model, groups):
    """Name of each parameter to the (lr, weight decay) of its group; fails if one is in two groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = (group["lr"], group["weight_decay"])
    return found


def test_parameter_groups():
    model = Parts()
    groups = parameter_groups(model, 1e-3, 0.05, new_parameters={"output.bias", "convolution.weight"}, new_lr_scale=3.0)
    assert settings_by_name(model, groups) == {
        "embedding.weight": (1e-3, 0.05),
        "norm.weight": (1e-3, 0.0),
        "norm.bias": (1e-3, 0.0),
        "convolution.weight": (3e-3, 0.05),
        "convolution.bias": (1e-3, 0.0),
        "output.bias": (3e-3, 0.0),
        "scale": (1e-3, 0.0),
    }
    assert len(groups) == 4


def test_without_new_parameters_there_is_one_learning_rate():
    model = Parts()
    groups = parameter_groups(model, 1e-3, 0.05)
    assert {lr for lr, _ in settings_by_name(model, groups).values()} == {1e-3}
    assert len(groups) == 2


def retriever():
    return Retriever(
        ImageEncoder("test_convnext", image_size=32),
        TextEncoder(vocab_size=20, hidden_size=8, layers=1, heads=2, feed_forward_size=8),
        FusionEncoder(8, layers=1, heads=2, feed_forward_size=8, image_width=64),
        embed_dim=4,
    )


@pytest.mark.parametrize("pretrained", [True, False])
def test_groups_of_a_retriever(pretrained):
    model = retriever()
    model.image_encoder.pretrained = pretrained
    model.text_encoder.requires_grad_(False)
    groups = parameter_groups(model, 1e-4, 0.01, new_parameters=model.new_parameters())
    found = settings_by_name(model, groups)
    assert found.keys() == {name for name, _ in model.named_parameters() if not name.startswith("text_encoder.")}
    matrices = (nn.Linear, nn.Conv2d, nn.Embedding)
    decayed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, matrices)}
    for name, (lr, decay) in found.items():
        is_backbone = name.startswith("image_encoder.backbone.")
        assert lr == (2e-4 if pretrained and not is_backbone else 1e-4), name
        assert decay == (0.01 if name in decayed else 0.0), name


def test_groups_are_what_adamw_takes():
    model = Parts()
    optimizer = adamw(parameter_groups(model, 1e-3, 0.5), (0.9, 0.98))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.98)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without a gradient only the decay moves a parameter: by lr * decay * itself
    for name, parameter in model.named_parameters():
        kept = 1 - 1e-3 * 0.5 if name in ("embedding.weight", "convolution.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), kept * before[name])


@pytest.mark.parametrize("is_finite", [True, False])
def test_a_scaler_s_gradients_can_be_clipped(is_finite):
    """As Lightning goes about it in 16-mixed: unscale, clip, step; against torch's own AdamW without a scaler."""
    torch.manual_seed(0)
    inputs = torch.randn(5, 4)
    if not is_finite:
        inputs[0] = torch.inf
    scaled, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    plain.load_state_dict(scaled.state_dict())
    optimizer = adamw(parameter_groups(scaled, 0.1, 0.5), (0.9, 0.98), is_mixed=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(scaled(inputs).square().sum()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(scaled.parameters(), 0.5)
    scaler.step(optimizer)
    if is_finite:  # else the step is left out
        plain(inputs).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        torch.optim.AdamW(parameter_groups(plain, 0.1, 0.5), betas=(0.9, 0.98), fused=False).step()
    for one, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("total_steps", "warmup_fraction", "expected"),
    [
        (10, 0.3, [1 / 3, 2 / 3, 1, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0, 0]),
        (4, 0.0, [1, 3 / 4, 2 / 4, 1 / 4, 0, 0]),
        (4, 0.03, [1, 3 / 4, 2 / 4, 1 / 4, 0, 0]),  # too short for a warm-up
        (1, 0.03, [1, 0, 0]),
        (3, 0.99, [1 / 2, 1, 1, 0, 0]),
    ],
)
def test_schedule(total_steps, warmup_fraction, expected):
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "lr": 1e-4}, {"params": [parameters[1]], "lr": 2e-4}]
    optimizer = torch.optim.SGD(groups)
    schedule = linear_warmup_decay(optimizer, total_steps, warmup_fraction)
    for factor in expected:
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4 * factor, 2e-4 * factor])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 is out of range: choose 0 or more"),
        ({"lr": float("nan")}, "lr=nan is out of range"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is out of range: choose 0 or more"),
        ({"new_lr_scale": -2.0}, "new_lr_scale=-2.0 is out of range"),
    ],
)
def test_bad_settings_of_groups(settings, message):
    with pytest.raises(CCRError, match=message):
        parameter_groups(Parts(), **{"lr": 1e-3, "weight_decay": 0.05, **settings})


@pytest.mark.parametrize("betas", [(1.0, 0.98), (0.9, 2.0), (-0.1, 0.98)])
def test_bad_betas(betas):
    with pytest.raises(CCRError, match=r"betas=\(.+\) is out of range: choose two numbers from 0 to below 1"):
        adamw(parameter_groups(Parts(), 1e-3, 0.05), betas)


@pytest.mark.parametrize("warmup_fraction", [2.0, 1.0, -0.1])
def test_bad_warmup(warmup_fraction):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(CCRError, match=f"warmup_fraction={warmup_fraction} is out of range"):
        linear_warmup_decay(optimizer, 10, warmup_fraction)
