"""Fingerprint of a tokenizer: its vocabulary, and the ids of a fixed text. No torch.

Two tokenizers are the same if they give the same ids. The text of a tokenizer's file does not tell: libraries write
the same rules in several ways. The vocabulary and a text in many scripts, with what rules differ in (white space,
digits, case, composed characters, bytes of no word), do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PROBE = (
    "The quick brown fox doesn't jump over 13 lazy dogs; it's 3.14159, 1,234,567.89 or 0x7f -- \"isn't it?\" "
    "(No!)\n"
    "\tdef camelCaseName(snake_case, *args, **kwargs):\r\n"
    "        return {'a': [1, 22, 333, 4444, 55555]}  # ok\n"
    "\n"
    "\n"
    "https://example.org/a-b_c/?q=x%20y&z=1#top user@example.com aaaaaaaaaaaaaaaa   ten          spaces. ALL "
    "CAPS Title\n"
    "Straße, Äpfel, über; naïve café cafe\u0301, cœur, ¿qué? ¡señor! São, żółć, příliš, İstanbul ılık, Ångström"
    ", þing\n"
    "Ελληνικά ώρα; Русский текст, ещё; українська їжа; Հայերեն; ქართული; עברית שלום; العربية مُدَرِّسٌ؛ فارسی "
    "می\u200cخواهم\n"
    "हिन्दी क्षत्रिय; বাংলা; தமிழ் மொழி; ไทยไม่มีช่องว่าง; 中文分词没有空格，简体；繁體字「引號」。日本語のカタ"
    "カナとﾊﾝｶｸ、漢字々; 한국어 \u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165; አማርኛ; မြန်မာ; ខ្មែរ\n"
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇪🇺 ❤\ufe0f ☃ ∀x∈ℝ: x²≥0, ∑ᵢ½ ≈ ½ ﬁ Ⅳ ①２３ €£¥ ™ “curly” ‘quotes’ – — "
    "… ├─┤ 𠀋 𝔘𝔫𝔦\n"
    "for (int i = 0; i <= n; ++i) { a[i] += b->c * ~mask << 2; } <div class='x'>&amp;</div> \\frac{a_1^2}{b} "
    "$x$ #[derive(Debug)]\n"
    "In 1984, they'd've said we're I'm you'll SHE'S can't; on 2024-02-29T23:59:60Z at 07:30 p.m., pp. 12–15, "
    "No. 5, 50%, 1st.\n"
    "unbelievably interdisciplinary counterrevolutionaries; xqzvk Wjfgh qwertyuiop Zx9Qw7-Er5Ty3; hhhhmmmm!!!??"
    "? ...... ===>> ~~~\n"
    "Perhaps the meaning of a word is its use in the language, as somebody once wrote; nobody knows where "
    "the wind begins.\n"
    "\u202dTiếng Việt được viết bằng chữ Quốc ngữ; ਪੰਜਾਬੀ; తెలుగు; ລາວ; සිංහල; ᏣᎳᎩ; ⠃⠗⠇; ᚱᚢᚾ; o\u0328\u0304 "
    "= ǭ; Å = A\u030a\n"
    "no\u00a0break\u2003em\u200bzero\u00adsoft \u0001\u007f\ue000 � end \n"
    " "
)


def tokenizer_fingerprint(vocabulary: Mapping[str, int], encode: Callable[[str], Sequence[int] | Any]) -> str:
    """SHA-256, hexadecimal, of (id, token) in order of id and of the ids that `encode` gives for `PROBE`."""
    entries = sorted((int(id), token) for token, id in vocabulary.items())
    facts = [entries, [int(id) for id in encode(PROBE)]]
    # Any lone surrogate of a damaged vocabulary is escaped.
    return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()
