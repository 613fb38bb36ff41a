"""Makes the SentencePiece models and oracle rows of this folder: pip install sentencepiece==0.2.3 protobuf; python make.py OUT [--all ROWS]

Without --all: the small models that are committed. With it: more of them, with the large built-in normalisation tables.
"""
import io, json, os, random, sys
import sentencepiece as spm

out, everything = sys.argv[1], "--all" in sys.argv
count = int(sys.argv[sys.argv.index("--all") + 1]) if everything else 60
rng = random.Random(7)
WORDS = """llama alpaca vicuna guanaco mountain the a of and over runs running ran high higher highest Andes caravan carries wool
salt silver potatoes market morning evening don't it's naive caf\u00e9 fn main let mut return struct impl println 1984 42 3.14 x=1;y=2
\u65e5\u672c\u8a9e \u0436\u0438\u0437\u043d\u044c \u4e2d\u6587 \u03b1\u03b2\u03b3 \ufb01ne \uff21\uff22 \u00bd ( ) { } [ ] -> => == != ,. ;: ! ?""".split()
corpus = []
for _ in range(3000):
    line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 14)))
    corpus.append(rng.choice(["", "", "    ", "  "]) + line.replace(" ,.", ","))
NASTY = [" ", "  ", "   ", "\n", "\t", "\r\n", "\u2581", "\u2581\u2581", "\u00a0", "\u3000", "\u200b", "\0", "\x01", "\x7f", "<s>", "</s>", "<unk>",
         "<0x41>", "<sep>", "<ctl>", "\U0001f999", "\U0001f3fd", "e\u0301", "\u0301", "\ufeff", "\ufffd", "\ud7ff", "\ue000", "\U0010ffff",
         "aaaaaa", "11111", "\u0130", "\uac00", "\u1100\u1161", "\ufb01", "\uff21", "\u00bd", "\u2460", "zq", "foo bar", "\u2581the", "theof"]

def text():
    s = ""
    for _ in range(rng.randint(0, 12)):
        r = rng.random()
        s += rng.choice(WORDS) + rng.choice([" ", " ", ""]) if r < .5 else rng.choice(NASTY) if r < .9 else chr(rng.choice(
            [rng.randint(0, 0x7f), rng.randint(0x80, 0x2fff), rng.randint(0x3000, 0xd7ff), rng.randint(0xe000, 0x1ffff)]))
    return s

TSV = os.path.join(out, "rules.tsv")
with open(TSV, "w") as f:
    f.write("FB01\t66 69\nFF21\t41\nA0\t20\n3000\t20\n65 301\tE9\n41\t61\n42\t62\n200B\t\n66 66 69\t58 20 59\n9\t20\n20 2E\t2E\n")
LLAMA = dict(model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
             remove_extra_whitespaces=False, allow_whitespace_only_pieces=True)
MODELS = {
    "bpe_llama": dict(LLAMA, vocab_size=420),
    "bpe_rules": dict(model_type="bpe", vocab_size=150, normalization_rule_tsv=TSV, user_defined_symbols=["<sep>", "the", "o b"],
                      control_symbols=["<ctl>"], character_coverage=.98),
    "bpe_suffix": dict(model_type="bpe", vocab_size=150, treat_whitespace_as_suffix=True, normalization_rule_name="identity"),
    "bpe_unused": dict(LLAMA, vocab_size=420, unused=True),
    "bpe_cross": dict(LLAMA, vocab_size=420, split_by_whitespace=False, add_dummy_prefix=False),
    "unigram_rules": dict(model_type="unigram", vocab_size=190, normalization_rule_tsv=TSV, unk_surface="?", character_coverage=.98),
    "unigram_bytes": dict(model_type="unigram", vocab_size=420, byte_fallback=True, normalization_rule_name="identity",
                          remove_extra_whitespaces=False, user_defined_symbols=["<sep>", "ama", "\u2581\u2581"], control_symbols=["<ctl>"],
                          bos_piece="[B]", eos_piece="[E]", unused=True),
}
if everything:
    MODELS.update({
        "unigram_nfkc": dict(model_type="unigram", vocab_size=190, normalization_rule_name="nmt_nfkc"),
        "unigram_cf": dict(model_type="unigram", vocab_size=190, normalization_rule_name="nmt_nfkc_cf", add_dummy_prefix=False),
        "bpe_nfkc": dict(model_type="bpe", vocab_size=420, normalization_rule_name="nfkc", byte_fallback=True, user_defined_symbols=["\u00bd"]),
        "unigram_suffix": dict(model_type="unigram", vocab_size=180, treat_whitespace_as_suffix=True, normalization_rule_name="nfkc_cf"),
        "bpe_escape": dict(LLAMA, vocab_size=420, escape=False),
    })
for name, options in MODELS.items():
    options = dict(options)
    unused, escape = options.pop("unused", False), options.pop("escape", True)
    writer = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=writer, minloglevel=2, hard_vocab_limit=False, **options)
    data = writer.getvalue()
    from sentencepiece import sentencepiece_model_pb2 as pb
    proto = pb.ModelProto()
    proto.ParseFromString(data)
    if unused:
        normal = [p for p in proto.pieces if p.type == 1 and len(p.piece) > 1]
        for p in rng.sample(normal, len(normal) // 4):
            p.type = 5
    proto.normalizer_spec.escape_whitespaces = escape
    proto.normalizer_spec.normalization_rule_tsv = ""
    data = proto.SerializeToString()
    with open(os.path.join(out, name + ".model"), "wb") as f:
        f.write(data)
    sp = spm.SentencePieceProcessor(model_proto=data)
    rows = []
    for _ in range(count):
        t = text()
        ids = sp.encode(t)
        rows.append({"text": t, "ids": ids, "decoded": sp.decode(ids)})
    lists = []
    for _ in range(count):
        ids = [rng.choice([rng.randrange(sp.get_piece_size()), rng.randrange(min(sp.get_piece_size(), 270))]) for _ in range(rng.randint(0, 12))]
        lists.append({"ids": ids, "decoded": sp.decode(ids)})
    with open(os.path.join(out, name + ".json"), "w") as f:
        json.dump({"bos": sp.bos_id(), "eos": sp.eos_id(), "size": sp.get_piece_size(), "rows": rows, "lists": lists}, f, separators=(",", ":"))
os.remove(TSV)
