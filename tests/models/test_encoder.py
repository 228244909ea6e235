"""Texts to vectors: pooling by hand, what came along, the cache, and models that are not there."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from conftest import read_once, tiny
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import GPT2Config, GPT2LMHeadModel, modeling_gguf_pytorch_utils

from fedlab.core import DataError, ParameterError
from fedlab.models.text import (
    MINILM,
    SHIPPED,
    SMOLLM2,
    Encoder,
    encoder,
    familiarity,
    familiarity_kernel,
    fingerprint,
    item_texts,
    log_probabilities,
    read_vectors,
    tfidf,
    vectors,
    write_vectors,
)
from fedlab.models.text.encoder import ROOM
from fedlab.models.text.familiarity import TITLE

ODD = [
    "",
    "a",
    "Amélie (2001). Comedy",
    "七人の侍",
    "The Usual Suspects (1995). Crime, Thriller",
    "long " * 2000,
]


@pytest.fixture(scope="module")
def minilm():
    return encoder()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fedlab" / "text"


def test_a_text_has_title_year_and_genres():
    known = tiny([0, 0], [0, 1]).catalogue
    columns = {
        "titles": ("Usual Suspects, The", "Alien"),
        "years": torch.tensor([1995, 0]),
        "categories": torch.tensor([[True, True], [False, False]]),
    }
    catalogue = replace(known, columns={**known.columns, **columns})
    assert item_texts(catalogue) == [
        "The Usual Suspects (1995). Comedy, Drama",
        "Alien (year unknown). ",
    ]
    assert item_texts(catalogue, "{genres}: {title}") == [
        "Comedy, Drama: The Usual Suspects",
        ": Alien",
    ]
    with pytest.raises(ParameterError, match=r"template='\{plot\}': unknown field 'plot'"):
        item_texts(catalogue, "{plot}")


def test_a_text_of_an_item_of_which_only_the_title_is_known():
    known = tiny([0, 0], [0, 1]).catalogue
    bare = replace(known, columns={"titles": known.titles})
    assert item_texts(bare) == ["Film 0 (year unknown). ", "Film 1 (year unknown). "]
    with pytest.raises(DataError, match="these data have no titles; give a table of items"):
        item_texts(replace(known, columns={}))


def test_tfidf_is_that_of_scikit_learn(ratings):
    texts = [*item_texts(ratings.catalogue)[:300], "no word twice anywhere: xyzzy"]
    theirs = TfidfVectorizer(min_df=2).fit_transform(texts).toarray()
    torch.testing.assert_close(tfidf(texts), torch.tensor(theirs).float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_vector_is_pooled_from_the_states_of_its_own_tokens(minilm, pooling):
    found = replace(minilm, pooling=pooling)(ODD)
    assert found.shape == (6, 384)
    assert bool(found.isfinite().all())
    for one, vector in zip(ODD, found, strict=True):  # one text at a time, no padding, no mask
        ids = minilm.tokenizer(one, truncation=True, max_length=ROOM, return_tensors="pt")[
            "input_ids"
        ]
        with torch.inference_mode():
            states = minilm.model(input_ids=ids).last_hidden_state[0]
        by_hand = states.mean(0) if pooling == "mean" else states[-1]
        torch.testing.assert_close(vector, by_hand, atol=2e-5, rtol=1e-4)
    assert minilm([]).shape == (0, 384)


def test_the_vectors_that_come_along_are_those_of_the_model(ratings, minilm, cache):
    texts = item_texts(ratings.catalogue)
    shipped = vectors(texts)
    assert not cache.exists()  # looked up, not encoded
    assert shipped.shape == (9066, 384)
    some = torch.arange(0, 9066, 301)
    torch.testing.assert_close(
        shipped[some], minilm([texts[i] for i in some]), atol=2e-3, rtol=2e-3
    )
    assert SHIPPED.stat().st_size <= 8_000_000


def test_vectors_are_kept_and_a_damaged_file_is_made_anew(cache, monkeypatch):
    texts = ["Alien (1979). Horror", "Heat (1995). Crime"]
    first = vectors(texts, progress=False)
    (file,) = cache.iterdir()
    asked = []
    monkeypatch.setattr(
        sys.modules["fedlab.models.text.encoder"],
        "encoder",
        lambda *given: asked.append(given) or encoder(*given),
    )
    assert torch.equal(vectors(texts, progress=False), first)
    assert asked == []
    whole = bytearray(file.read_bytes())
    for damaged in (whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"not a table"):
        file.write_bytes(damaged)
        assert torch.equal(vectors(texts, progress=False), first)
        assert file.read_bytes() == whole
    assert len(asked) == 4
    vectors(texts, pooling="last", progress=False)
    assert len(list(cache.iterdir())) == 2


def test_a_file_of_other_texts_is_not_taken(tmp_path):
    write_vectors(tmp_path / "x.safetensors", "one", torch.ones(2, 3))
    assert torch.equal(read_vectors(tmp_path / "x.safetensors", "one"), torch.ones(2, 3))
    assert read_vectors(tmp_path / "x.safetensors", "two") is None
    assert fingerprint(["a"], MINILM, "mean") != fingerprint(["b"], MINILM, "mean")
    assert fingerprint(["a"], MINILM, "mean") != fingerprint(["a"], MINILM, "last")


def test_a_folder_works_as_a_name(tmp_path, minilm):
    minilm.model.save_pretrained(tmp_path)
    minilm.tokenizer.save_pretrained(tmp_path)
    same = encoder(str(tmp_path))(["Alien"])
    torch.testing.assert_close(same, minilm(["Alien"]))
    before = fingerprint(["a"], str(tmp_path), "mean")
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert fingerprint(["a"], str(tmp_path), "mean") != before  # another model in the same folder


def test_what_is_not_there_is_said_with_the_ways_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"model='no/such-model': not to be had .*Choose 'all-MiniLM-L6-v2' or"
    with pytest.raises(ParameterError, match=message):
        encoder("no/such-model")
    with pytest.raises(ParameterError, match="pooling='max': choose one of mean, last"):
        encoder(MINILM, "max")


def test_a_gpt_type_model_without_a_pad_token_goes_the_same_way():
    gpt = replace(read_once(SMOLLM2), pooling="last")
    bare = replace(gpt, tokenizer=copy.deepcopy(gpt.tokenizer))
    bare.tokenizer.pad_token = None
    found = bare(ODD[1:5])
    assert found.shape == (4, 576)
    torch.testing.assert_close(
        found, torch.cat([gpt([one]) for one in ODD[1:5]]), atol=1e-3, rtol=1e-3
    )
    assert gpt.model.config.model_type == "llama"


def test_a_model_is_read_without_a_bar(capsys):
    encoder()
    assert list(modeling_gguf_pytorch_utils.tqdm([1, 2])) == [1, 2]  # as a GGUF file's tensors are
    assert capsys.readouterr().err == ""


def test_familiarity_is_what_the_models_own_head_says_of_each_text_by_itself(minilm):
    torch.manual_seed(0)
    words = minilm.tokenizer
    config = GPT2Config(vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=600)
    head = GPT2LMHeadModel(config).eval()
    texts = ["Alien", "", "The Usual Suspects", *[f"Part {k} of a long title" for k in range(20)]]
    found = log_probabilities(Encoder("tiny", words, head.transformer), texts)
    for text, (mean, total) in zip(texts, found.tolist(), strict=True):
        start, row = (words(t, add_special_tokens=False)["input_ids"] for t in (TITLE, text))
        with torch.no_grad():
            logits = head(input_ids=torch.tensor([start + row])).logits[0].log_softmax(-1)
        each = [float(logits[len(start) + t - 1, word]) for t, word in enumerate(row)]
        assert total == pytest.approx(sum(each), abs=1e-3)
        assert mean == pytest.approx(sum(each) / max(1, len(each)), abs=1e-4)


def test_familiarity_needs_a_model_that_writes_and_a_word_in_front(minilm):
    with pytest.raises(ParameterError, match="model='all-MiniLM-L6-v2': it does not predict"):
        log_probabilities(minilm, ["Alien"])
    config = GPT2Config(vocab_size=len(minilm.tokenizer), n_embd=16, n_layer=1, n_head=2)
    tiny_one = Encoder("tiny", minilm.tokenizer, GPT2LMHeadModel(config).eval().transformer)
    with pytest.raises(ParameterError, match="before='': the first word needs one in front"):
        log_probabilities(tiny_one, ["Alien"], before="")


def test_familiarity_is_kept(cache):
    cache.mkdir(parents=True)
    key, kept = fingerprint([TITLE, "Alien"], SMOLLM2, "familiarity"), torch.tensor([[-1.0, -2.0]])
    write_vectors(cache / f"{key}.safetensors", key, kept)
    assert torch.equal(familiarity(["Alien"]), kept)


def test_the_familiar_are_alike():
    kernel = familiarity_kernel(torch.tensor([[-1.0, 5.0], [-1.5, 5.0], [-9.0, 5.0]]))
    assert kernel[0, 1] > 0.9
    assert kernel[0, 2] < 0.3
    with pytest.raises(ParameterError, match="width=0"):
        familiarity_kernel(torch.zeros(3, 2), width=0)
