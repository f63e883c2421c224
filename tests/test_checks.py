"""What is checked before a run, and when: a tokeniser that the checkpoint carries is not looked for elsewhere."""

import shutil

import lightning
import pytest
import torch
from transformers import BertTokenizerFast

from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.checks import check_mrv_languages, check_tokenizer
from ccr_lightning.training.module import RetrievalModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


def retriever():
    text = TextEncoder(vocab_size=30, hidden_size=8, layers=1, heads=2, feed_forward_size=8, max_positions=40)
    return Retriever(ImageEncoder("test_convnext", image_size=32), text, embed_dim=8)


def trainer():
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return lightning.Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **quiet,
    )


@pytest.fixture
def data(tiny_jsonl, tmp_path):
    arguments = tiny_jsonl()

    def make(tokenizer):
        return CaptionDataModule(
            JsonLines(**arguments),
            tokenizer,
            ImageTransform(32),
            batch_size=8,
            cache_dir=str(tmp_path / "cache"),
        )

    return make


def test_a_tokeniser_must_fit_the_text_encoder():
    check_tokenizer(retriever(), CaptionTokenizer(vocab_size=30))
    with pytest.raises(CCRError, match="the tokeniser has 31 tokens but the text encoder only 30"):
        check_tokenizer(retriever(), CaptionTokenizer(vocab_size=31))
    with pytest.raises(CCRError, match=r"captions of 41 tokens .* only 40 positions"):
        check_tokenizer(retriever(), CaptionTokenizer(vocab_size=30, max_tokens=41))
    with_own = retriever()
    with_own.tokenizer = CaptionTokenizer(vocab_size=31)  # as that of multilingual SigLIP, with tokens that no text has
    check_tokenizer(with_own, CaptionTokenizer(vocab_size=31))
    with pytest.raises(CCRError, match="the data's tokeniser is not the one that the model was trained with"):
        check_tokenizer(with_own, CaptionTokenizer(vocab_size=32))


def test_the_other_checks_load_no_tokeniser(data):
    check_mrv_languages(["de"], data(CaptionTokenizer("nowhere/to-be-found")))
    with pytest.raises(CCRError, match="mrv_languages names 'fr'"):
        check_mrv_languages(["fr"], data(CaptionTokenizer("nowhere/to-be-found")))


def test_testing_takes_a_pretrained_tokeniser_from_the_checkpoint(data, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "circle", "number"]
    BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}).save_pretrained(tmp_path / "words")

    def module():
        torch.manual_seed(0)
        return RetrievalModule(retriever(), matching_weight=0, masked_lm_weight=0)

    fitting = trainer()
    fitting.fit(module(), datamodule=data(CaptionTokenizer(str(tmp_path / "words"))))
    fitting.save_checkpoint(tmp_path / "run.ckpt")
    shutil.rmtree(tmp_path / "words")  # as a hub that cannot be reached
    tested = data(CaptionTokenizer(str(tmp_path / "words")))
    trainer().test(module(), datamodule=tested, ckpt_path=tmp_path / "run.ckpt", weights_only=True, verbose=False)
    assert tested.tokenizer.vocab_size == len(words)
    with pytest.raises(CCRError, match="cannot be loaded"):
        trainer().test(module(), datamodule=data(CaptionTokenizer(str(tmp_path / "words"))), verbose=False)
