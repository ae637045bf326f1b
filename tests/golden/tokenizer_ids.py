#!/usr/bin/env python3
"""Makes the reference ids of the tokenizer tests with the Hugging Face `tokenizers` library.

    tests/golden/tokenizer_ids.py [SHARED_DATA]

writes, beside itself, three small tokenizers (tokenizer_gpt2.json, tokenizer_cl100k.json,
tokenizer_steps.json), tokenizer_ids.json (tricky texts and their ids under the three), tokenizer_trained.json (merges learned
from those texts) and, given the
folder of shared corpora, tokenizer_shared_ids.json (ids of whole corpora and of the same tricky texts
under real tokenizers). Ids are kept as count, FNV-1a 64 of the ids as little-endian i32, and the first
32. Made with tokenizers 0.23.3.
"""
import json
import pathlib
import random
import struct
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXTS = {
    "empty": "",
    "one": "a",
    "contractions": "I'm you're HE'LL we've it's 'tis don'T O'D 's's''s I\u2019m '\u017f x'S",
    "digits": "1 12 123 1234 12345 1,234.5 \u0661\u0662\u0663\u0664 \u00bd\u2167 x86_64 3\u00b2",
    "cjk": "\u6211\u4eec\u7684\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4 1\u6708",
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea\u2764\ufe0f!!",
    "marks": "e\u0301 \u00e9 o\u0323\u0302 \u1ed9 a\u0302\u0323 \u0301x \u1100\u1161\u11a8 \u212b q\u0307\u0323\u0307",
    "crlf": "line one\r\nline two\r\n\r\n\r\n  three\n \n\r",
    "tabs": "\tif x:\n\t\treturn\t y \t\n",
    "spaces": "a  b   c    d          e            ",
    "odd spaces": "a\u00a0b\u3000\u3000c\u2003 d\u0085e\u180ef\u2028g\u200bh\ufeffi\x1cj\x0bk",
    "controls": "\x00\x01a\x7f\x00\x00",
    "punctuation": "--- ... !!! ?! (a) [b] {c} <d> \u00abe\u00bb \u2014 f\u2026 $5 100% #1 @x a/b c\\d ~`^",
    "added": "a<|endoftext|>b <|endoftext|> <|END|><|END|x|> <keep>x <keep> <strip>  x  <strip>\u3000y"
             " <left>  z  <left> word xword word_ word. (word) \u00e9word word\u0301 wordword word",
    "added nfc": "caf\u00e9 cafe\u0301 cafe\u0301s xcaf\u00e9",
    "whole words": "hello hellos the hello_ Hello xyzzy  xyzzy",
    "code": "for (int i = 0; i < n; ++i) {\n    sum += a[i] * b[i];  // dot\n}\n",
    "scripts": "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u0393\u03b5\u03b9\u03ac \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 "
               "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \u00df\u0130\u0131 \u01c5 \u2126 \ufb01",
}
INVALID = {  # bytes; each invalid byte is encoded alone, the valid runs between them as texts
    "lone": b"\xff", "latin1": b"na\xefve caf\xe9 \xfcber", "truncated": b"ab\xe2\x82", "surrogate": b"x\xed\xa0\x80y",
    "overlong": b"\xc0\xafa\xe0\x80\xaf", "mixed": b"ok \xf0\x9f\x98\x80\x80 <|endoftext|>\xfe\xff  \xf5 e\xcc\x81",
    "too large": b"\xf4\x90\x80\x80",
}


def random_text(seed, pieces):
    """Pieces of the texts above and loose characters, shuffled."""
    rng = random.Random(seed)
    alphabet = sorted(set("".join(TEXTS.values())))
    words = " ".join(TEXTS.values()).split(" ")
    out = []
    for _ in range(pieces):
        kind = rng.random()
        if kind < 0.4:
            out.append(rng.choice(words))
        elif kind < 0.7:
            out.append(rng.choice(alphabet))
        else:
            out.append(rng.choice([" ", "  ", "\n", "\r\n", "'s", "1", "a", "e\u0301", "\t"]))
    return "".join(out)


def summary(ids):
    digest = 0xCBF29CE484222325
    for byte in struct.pack("<%di" % len(ids), *ids):
        digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return {"count": len(ids), "fnv1a": "%016x" % digest, "first": ids[:32]}


def encode_bytes(tokenizer, data):
    ids = []
    run = ""
    for c in data.decode("utf-8", "surrogateescape") + "\udc00":
        if not 0xDC00 <= ord(c) <= 0xDCFF:
            run += c
            continue
        ids += tokenizer.encode(run, add_special_tokens=False).ids
        run = ""
        byte = ord(c) & 0xFF
        if c != "\udc00":
            (one,) = [a for a, b in byte_alphabet().items() if b == byte]
            known = tokenizer.token_to_id(one)
            ids += [known] if known is not None else tokenizer.encode("\ufffd", add_special_tokens=False).ids
    return ids


def byte_alphabet():
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def small_tokenizer(pre_tokenizer, normalizer, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    texts = list(TEXTS.values()) + [random_text(7, 400)]
    alphabet = [c for c in byte_alphabet()]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def save(name, tokenizer, change=lambda document: None):
    document = json.loads(tokenizer.to_str())
    change(document)
    path = HERE / name
    path.write_text(json.dumps(document, ensure_ascii=True, separators=(",", ":")) + "\n")
    return Tokenizer.from_file(str(path))


def gpt2_style():
    """NFC, GPT-2's pattern, added tokens with every flag, merges as pairs."""
    tokenizer = small_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC(), 420)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|END|>", "<|END|x|>"])
    tokenizer.add_tokens([AddedToken("<keep>", normalized=False), AddedToken("<strip>", lstrip=True, rstrip=True),
                          AddedToken("<left>", lstrip=True, normalized=False), AddedToken("word", single_word=True),
                          AddedToken("cafe\u0301"), AddedToken("   ")])
    return save("tokenizer_gpt2.json", tokenizer)


def cl100k_style():
    """The way dolma2 is written: Split (Removed, inverted), ByteLevel without its pattern, merges as
    "a b", whole words before merges."""
    tokenizer = small_tokenizer(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CL100K), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), None, 420)

    def change(document):
        model = document["model"]
        model["merges"] = [" ".join(m) for m in model["merges"]]
        model["ignore_merges"] = True
        for token in ("xyzzy", "\u0120xyzzy", "hellos"):  # no merges lead to them
            model["vocab"].setdefault(token, len(model["vocab"]))
        document["added_tokens"] = [{
            "id": len(model["vocab"]), "content": "<|endoftext|>", "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True}]
    return save("tokenizer_cl100k.json", tokenizer, change)


def steps():
    """Several splitting steps and a prefix space before each piece."""
    return save("tokenizer_steps.json", small_tokenizer(pre_tokenizers.Sequence([
        pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split(Regex(r"(?=[A-Z])|x\s"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=True)]), None, 320))


def trained(texts):
    """Merges that the library's trainer learns from the valid texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CL100K), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    texts = {name: data.decode() for name, data in texts.items() if name not in INVALID}
    tokenizer.train_from_iterator(texts.values(), trainers.BpeTrainer(
        vocab_size=556, initial_alphabet=list(byte_alphabet()), show_progress=False))
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return {"texts": list(texts), "merges": merges}


def reference(tokenizer, texts):
    return {name: summary(encode_bytes(tokenizer, data)) for name, data in texts.items()}


def main():
    texts = {name: text.encode() for name, text in TEXTS.items()} | INVALID
    texts["random"] = random_text(1, 1500).encode()
    small = {"tokenizer_gpt2.json": gpt2_style(), "tokenizer_cl100k.json": cl100k_style(),
             "tokenizer_steps.json": steps()}
    document = {"texts": {name: data.hex() for name, data in texts.items()},
                "ids": {name: reference(tokenizer, texts) for name, tokenizer in small.items()}}
    (HERE / "tokenizer_ids.json").write_text(json.dumps(document, indent=0) + "\n")
    (HERE / "tokenizer_trained.json").write_text(json.dumps(trained(texts), indent=0) + "\n")
    if len(sys.argv) < 2:
        return
    shared = pathlib.Path(sys.argv[1])
    gpt2 = Tokenizer(models.BPE(*models.BPE.read_file(str(shared / "tokenizers/gpt2_encoder.json"),
                                                      str(shared / "tokenizers/gpt2_vocab.bpe"))))
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    real = {name: Tokenizer.from_file(str(shared / "tokenizers" / name))
            for name in ("allenai_dolma2.json", "allenai_gpt-neox-olmo-dolma-v1_5.json")} | {"gpt2": gpt2}
    corpora = {name: (shared / name).read_bytes() for name in ("gutenberg/small.txt", "text/tinyshakespeare.txt")}
    document = {name: reference(tokenizer, texts | corpora) for name, tokenizer in real.items()}
    (HERE / "tokenizer_shared_ids.json").write_text(json.dumps(document, indent=0) + "\n")


if __name__ == "__main__":
    main()
