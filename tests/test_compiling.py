"""``torch.compile`` of a model's parts."""

import shutil

import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.training.compiling import compile_parts
from tests.test_step import assert_same, batch, losses_and_gradients, module


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")
def test_compiled_parts_give_the_same_losses_for_any_number_of_tokens():
    plain, compiled = (module(image_model="test_vit", image_size=160) for _ in range(2))
    compile_parts(compiled.retriever, torch.device("cpu"))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for seed in (1, 2):
        of = batch(image_size=160, seed=seed)
        assert_same(losses_and_gradients(compiled, of), losses_and_gradients(plain, of), 1e-5)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CCRError, match=r"model.is_compiled needs a C\+\+ compiler on a CPU, and there is no g"):
        compile_parts(module().retriever, torch.device("cpu"))
