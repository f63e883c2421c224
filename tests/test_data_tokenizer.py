import io
import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast, XLMRobertaTokenizer

from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.errors import CCRError

CAPTIONS = [
    *(f"a red apple on plate {n}" for n in range(20)),
    *(f"ein roter Apfel auf Teller {n}" for n in range(20)),
    *(f"皿{n}の上の赤いりんご" for n in range(20)),
]
ELSEWHERE = """
import json
from ccr_lightning.data.tokenizer import CaptionTokenizer
from test_data_tokenizer import CAPTIONS
tokenizer = CaptionTokenizer(vocab_size=150, max_tokens=12)
tokenizer.train(CAPTIONS)
print(json.dumps(tokenizer.to_dict()))
"""


@pytest.fixture(scope="module")
def trained():
    tokenizer = CaptionTokenizer(vocab_size=150, max_tokens=12)
    tokenizer.train(CAPTIONS)
    return tokenizer


def test_special_tokens_and_layout(trained):
    input_ids, mask = trained.encode(["a red apple", "りんご", ""])
    assert (trained.pad_token_id, trained.mask_token_id, trained.special_token_ids) == (1, 4, (0, 1, 2, 3, 4))
    assert trained.vocab_size == 150
    assert input_ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    for ids, real in zip(input_ids.tolist(), mask.tolist(), strict=True):
        length = sum(real)
        assert real == [True] * length + [False] * (len(real) - length)
        assert ids[0] == 0
        assert ids[length - 1] == 2
        assert ids[length:] == [1] * (len(ids) - length)
        assert not set(ids[1 : length - 1]) & {0, 1, 2, 3, 4}
    assert mask[2].sum() == 2
    assert mask.any(dim=0).all()  # padded to the longest, no further


@pytest.mark.parametrize("text", ["a red apple on plate 7", "ein roter Apfel", "皿7の上の赤いりんご"])
def test_the_ids_are_those_of_the_text(trained, text):
    tokenizer = CaptionTokenizer.from_dict({**trained.to_dict(), "max_tokens": 40})
    ids = tokenizer.encode([text])[0][0].tolist()
    assert Tokenizer.from_str(trained.to_dict()["tokenizer"]).decode(ids) == text


def test_normalisation(trained):
    plain, _ = trained.encode(["a red apple"])
    for odd in ("  a red\u00a0apple\n", "a\t red \u2028apple", "ａ ｒｅｄ apple"):
        assert torch.equal(trained.encode([odd])[0], plain)


def test_truncation_keeps_the_end_token(trained):
    input_ids, mask = trained.encode(["a red apple on plate 3 " * 20])
    assert input_ids.shape == (1, 12)
    assert mask.all()
    assert (input_ids[0, 0], input_ids[0, -1]) == (0, 2)


def test_remembered_captions_change_nothing(trained):
    fresh = CaptionTokenizer.from_dict(trained.to_dict())
    first = fresh.encode(CAPTIONS)
    again = fresh.encode(CAPTIONS)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert fresh.encode([])[0].shape[0] == 0


def test_training_is_deterministic_over_processes(trained):
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ELSEWHERE]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == trained.to_dict()


def test_a_checkpoint_carries_it(trained):
    file = io.BytesIO()
    torch.save(trained.to_dict(), file)
    file.seek(0)
    loaded = CaptionTokenizer.from_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded.encode(CAPTIONS)[0], trained.encode(CAPTIONS)[0])
    assert loaded.to_dict() == trained.to_dict()
    assert (loaded.max_tokens, loaded.mask_token_id, loaded.special_token_ids) == (12, 4, (0, 1, 2, 3, 4))
    with pytest.raises(CCRError, match="cannot be read"):
        CaptionTokenizer.from_dict({**trained.to_dict(), "tokenizer": "{"})


def test_special_tokens_in_a_caption_are_plain_text(trained, tmp_path):
    captions = ["a <mask> red <pad> </s>", "<mask>", "＜mask＞ red", "<s>red</s><unk>", "[MASK] red [SEP] [PAD]"]
    BertTokenizerFast(
        vocab={word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red"])}
    ).save_pretrained(tmp_path / "bert")
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁a", -2.0), ("▁red", -2.0)]
    XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)]).save_pretrained(tmp_path / "xlm-r")  # scored as in XLM-R
    loaded = [CaptionTokenizer(str(tmp_path / name)) for name in ("bert", "xlm-r")]
    for tokenizer in (trained, *loaded, *(CaptionTokenizer.from_dict(each.to_dict()) for each in loaded)):
        input_ids, mask = tokenizer.encode(captions)
        plain, _ = tokenizer.encode(["red"])
        unknown = tokenizer._tokenizer.unk_token_id
        for ids in (row[real].tolist() for row, real in zip(input_ids, mask, strict=True)):
            assert (ids[0], ids[-1]) == (plain[0, 0], plain[0, -1])
            assert not set(ids[1:-1]) & (set(tokenizer.special_token_ids) - {unknown})


def test_transformers_reads_and_writes_the_same(trained, tmp_path):
    state = trained.to_dict()
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state["tokenizer"]), **state["roles"]).save_pretrained(
        tmp_path
    )
    expected, mask = trained.encode(CAPTIONS)
    by_path = CaptionTokenizer(str(tmp_path), max_tokens=12)
    assert by_path.is_ready
    assert torch.equal(by_path.encode(CAPTIONS)[0], expected)
    assert by_path.vocab_size <= 150
    theirs = AutoTokenizer.from_pretrained(tmp_path)(
        CAPTIONS, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    assert torch.equal(theirs["input_ids"], expected)
    assert torch.equal(theirs["attention_mask"].bool(), mask)


def test_any_transformers_tokeniser_and_a_missing_mask_token(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple"]
    bert = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})
    bert.save_pretrained(tmp_path / "bert")
    tokenizer = CaptionTokenizer(str(tmp_path / "bert"))
    input_ids, mask = tokenizer.encode(["A red pear", "apple"])
    assert input_ids.tolist() == [[2, 5, 6, 1, 3], [2, 7, 3, 0, 0]]
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert (tokenizer.vocab_size, tokenizer.mask_token_id, tokenizer.pad_token_id) == (8, 4, 0)
    assert torch.equal(CaptionTokenizer.from_dict(tokenizer.to_dict()).encode(["red"])[0], torch.tensor([[2, 6, 3]]))

    bert.mask_token = None
    bert.save_pretrained(tmp_path / "maskless")
    maskless = CaptionTokenizer(str(tmp_path / "maskless"))
    assert maskless.encode(["apple"])[0].tolist() == [[2, 7, 3]]
    with pytest.raises(CCRError, match="has no mask token"):
        maskless.mask_token_id  # noqa: B018


def test_errors(tmp_path):
    with pytest.raises(CCRError, match="not trained yet"):
        CaptionTokenizer().encode(["a"])
    with pytest.raises(CCRError, match="max_tokens 2"):
        CaptionTokenizer(max_tokens=2)
    with pytest.raises(CCRError, match="cannot be loaded; give the path of a folder"):
        CaptionTokenizer(str(tmp_path / "nothing")).encode(["a"])
    with pytest.raises(CCRError, match="trained already"):
        CaptionTokenizer(str(tmp_path)).train(["a"])
    with pytest.raises(CCRError, match="no captions to train on"):
        CaptionTokenizer().train([])
    with pytest.raises(CCRError, match="different characters, too many for a vocab_size of 20"):
        CaptionTokenizer(vocab_size=20).train(CAPTIONS)
