"""Records what Hugging Face tokenizers and Jinja2 answer, for runtime/text's tests.

pip install tokenizers==0.23.3 jinja2==3.1.6;  python tests/golden/make_text_cases.py   (from the source root)
Writes tests/golden/text/{pretokenizers,templates}.json. Inputs: launch/demo, tests/golden/text/.
"""

import datetime
import json
import os
import pathlib
import random
import tempfile
import time

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

os.environ["TZ"] = "UTC"
time.tzset()
ROOT = pathlib.Path("tests/golden/text")
NOW = 1700000000
RANDOM = random.Random(20240607)

# --- tokenizers -------------------------------------------------------------------------------------------------------

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps) + [BYTES]}


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
KIMI = "|".join(
    [
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}&&[^\p{{Han}}]]*[{LOWER}&&[^\p{{Han}}]]+{CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}&&[^\p{{Han}}]]+[{LOWER}&&[^\p{{Han}}]]*{CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕℂℇℊ-ℓℕ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
CJK = "[一-龥ࠀ-一가-퟿]+"
DIGITS = {"type": "Digits", "individual_digits": True}

PRE_TOKENIZERS = {
    "deepseek-v3": None,  # the demo's own
    "deepseek-v2": sequence(
        split(r"[\r\n]"), split(rf"\s?[{CASED}]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"), split(CJK), DIGITS
    ),
    "deepseek-coder": sequence(split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(CJK), DIGITS),
    "gpt2": GPT2,
    "gpt2-prefix": {**GPT2, "add_prefix_space": True},
    "llama3": sequence(split(LLAMA3)),
    "qwen2": sequence(split(LLAMA3.replace("{1,3}", ""))),
    "cl100k": sequence(split(CL100K, "Removed", True)),
    "o200k": sequence(split(O200K)),
    "kimi": sequence(split(KIMI)),
    "merged-previous": sequence(split(r"\s+", "MergedWithPrevious")),
    "merged-next": sequence(split(r"\s+", "MergedWithNext")),
    "contiguous": sequence(split(r"[a-m]", "Contiguous")),
    "removed": sequence(split(r"[a-m]+", "Removed")),
    "inverted": sequence(split(r"\w+|[^\w\s]+", "MergedWithPrevious", True)),
    "literal": sequence({"type": "Split", "pattern": {"String": "a."}, "behavior": "MergedWithNext", "invert": False}),
    "punctuation": sequence({"type": "Punctuation", "behavior": "Isolated"}),
    "whitespace": sequence({"type": "Whitespace"}),
    "whitespace-split": sequence({"type": "WhitespaceSplit"}),
    "digits": sequence({"type": "Digits", "individual_digits": False}),
    "lazy": sequence(split(r"a*?b|(?:ab|a)+c|x{2,3}?y|(?=\d)\w|^\s|\S$")),
    "options": sequence(split(r"(?i)the|(?>a+)b|\p{Lu}\p{Ll}{0,2}|[^\W\d_]{2}|\x{41}|[\u0041-\u0043]|\h+")),
    "groups": sequence(split(r"(?:\r\n|\n|\s)+?|(?:a|b|ab){2,4}|(?:xy?)*z|\p{^L}|.")),
    "empty-matches": sequence(split(r"\s*|x")),
    "lookahead": sequence(split(r"(?!a)\w*")),
    "intersection": sequence(split(r"(?m:a.b)|[^a-c&&\w]|[\w&&[^\d]]+")),
    "anchors": sequence(split(r"x*+y|y{2}|$\n|\s+$|\s+\z|\A.")),
}
NORMALIZERS = {
    "nfc": {"type": "NFC"},
    "replace": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
            {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
        ],
    },
}


def added(number, content, **flags):
    base = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    return {"id": number, "content": content, **base, **flags}


ADDED = [
    added(4096, "<tool>", lstrip=True),
    added(4097, "<|x|>", rstrip=True, special=True),
    added(4098, "qword", single_word=True, normalized=True),
    added(4099, "<tool>s"),
    added(4100, "né x", lstrip=True, rstrip=True, normalized=True),
]
ATOMS = (
    "a b ab abc c The the HTTPServer Hello camelCase snake_case 1 12 123 1234 ٣ ² Ⅷ ½ . , ! ... 's 'S 'll 'LL 're ’s 'ſ é É ß ǅ ʰ 中 "
    "中文 汉字 ひ カナ 한국 ー Ж я ع हि न्दी ำ 😀 👩‍👩‍👧‍👦 🇫🇷 € + = < > / // _ - — <tool> <tool>s <|x|> word qword qwords x xx y z xyz 𠀀 𐐀 K ﬀ Å 가 "
    "<｜User｜> <｜begin▁of▁sentence｜>"
).split(" ") + ["né x", " ", " ", "  ", "   ", "\n", "\r\n", "\t", "\n\n", "\u3000", "\u00a0", "\u0085", "\u200b", "\u200d", "\ufeff"]
ATOMS += ["\x00", "\x1f", "\x7f", "e\u0301", "a\u0308\u0323", "\u1112\u1161\u11ab", "각\u11a8", "x\u0327\u0301", "\u0344"]


def random_text():
    kind = RANDOM.random()
    if kind < 0.75:
        return "".join(RANDOM.choice(ATOMS) for _ in range(RANDOM.randint(0, 16)))
    if kind < 0.9:
        planes = [(0, 0x7F), (0, 0x2FF), (0x300, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x10FFFF)]
        return "".join(chr(RANDOM.randint(*RANDOM.choice(planes))) for _ in range(RANDOM.randint(0, 12)))
    return "".join(RANDOM.choice(" \n\tab1.") for _ in range(RANDOM.randint(0, 40)))


def tokenizer_cases():
    base = json.load(open("launch/demo/tokenizer.json"))
    sets = [(name, None, step) for name, step in PRE_TOKENIZERS.items()]
    sets += [(f"{name}+{n}", norm, PRE_TOKENIZERS[name]) for name in ("deepseek-v3", "gpt2") for n, norm in NORMALIZERS.items()]
    out = []
    for i, (name, normalizer, pre_tokenizer) in enumerate(sets):
        overrides = {"normalizer": normalizer, "added_tokens": base["added_tokens"] + (ADDED if i % 2 else [])}
        if pre_tokenizer:
            overrides["pre_tokenizer"] = pre_tokenizer
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({**base, **overrides}, file)
            file.flush()
            reference = Tokenizer.from_file(file.name)
        texts = [random_text() for _ in range(40)]
        cases = [{"text": t, "ids": reference.encode(t).ids} for t in texts]
        out.append({"name": name, "overrides": overrides, "cases": cases})
    return out


# --- templates --------------------------------------------------------------------------------------------------------


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW).strftime(f)
    return env


# What this project leaves out on purpose: it refuses integers beyond 64 bits and dict keys other than strings, and a
# range prints as a list.
LEFT_OUT = ("{{ 12345678901234567890 }}", "{{ {1: 2} }}", "range(3) }}")

CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city, in °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CONVERSATIONS = [
    [user("Hello")],
    [{"role": "system", "content": " Be brief. "}, user("Hi"), assistant("Yes?"), user("多行\n文本 😀")],
    [user("q"), assistant("<think>\nhm\n</think>\n\nanswer"), user("again"), assistant("<think>x</think>done")],
    [user("weather?"), assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "sunny", "tool_call_id": "call12345"}],
    [
        {"role": "system", "content": "S"},
        user("weather?"),
        assistant("let me look", tool_calls=[{**CALL, "function": {"name": "f", "arguments": {"a": [1, 2.5, None]}}}]),
        {"role": "tool", "content": "rain", "tool_call_id": "call12345"},
        {"role": "tool", "content": "25C", "tool_call_id": "call12346"},
        assistant("It rains."),
        user("thanks"),
    ],
    [user([{"type": "text", "text": "what is "}, {"type": "image"}, {"type": "text", "text": "this?"}])],
    [user("a"), user("b")],
    [],
]


def template_cases():
    inputs = json.load(open(ROOT / "template_inputs.json"))
    env, out = environment(), []

    def add(template, messages, tools, prompt, extra):
        variables = dict(messages=messages, tools=tools, documents=None, add_generation_prompt=prompt)
        variables.update(bos_token="<s>", eos_token="</s>", **extra)
        case = {"template": template, "messages": messages, "tools": tools, "add_generation_prompt": prompt, "extra": extra}
        try:
            case["text"] = env.from_string(template).render(**variables)
        except Exception as error:  # whatever Jinja raises, this project must refuse, too
            case["error"] = f"{type(error).__name__}: {error}"
        out.append(case)

    for line in open(ROOT / "expressions.jinja", newline="\n").read().split("\n")[:-1]:
        if not line.endswith(LEFT_OUT):
            add(line, [], None, True, inputs["variables"])
    for text in inputs["whitespace"]:
        add(text, [], None, True, {})
    for path in sorted((ROOT / "templates").glob("*.jinja")):
        for messages in CONVERSATIONS:
            for tools in (None, TOOLS):
                for prompt, extra in ((True, {}), (False, {"thinking": True, "enable_thinking": False})):
                    add(path.read_text(), messages, tools, prompt, extra)
                    out[-1]["template"] = path.name
    return out


def write(name, data):
    with open(ROOT / name, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(x, ensure_ascii=False) for x in data) + "\n]\n")


write("pretokenizers.json", tokenizer_cases())
write("templates.json", template_cases())
