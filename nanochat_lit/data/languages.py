"""Estimate of the script and language of a text from its first characters.

Scripts are identified by code points; Latin and Cyrillic languages by frequent words. This is reliable for a page of
ordinary text, but not for a line, a list of names or program code.
"""

import bisect
import re

SCRIPT_RANGES = (
    (0x0041, "Latin"), (0x005B, ""), (0x0061, "Latin"), (0x007B, ""), (0x00C0, "Latin"), (0x0250, ""), (0x0370, "Greek"),
    (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0700, ""), (0x0750, "Arabic"),
    (0x0780, ""), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, ""), (0x0B80, "Tamil"), (0x0C00, ""),
    (0x0E00, "Thai"), (0x0E80, ""), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x1380, ""),
    (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x3040, "Kana"), (0x3100, ""), (0x3400, "Han"), (0x4DC0, ""),
    (0x4E00, "Han"), (0xA000, ""), (0xAC00, "Hangul"), (0xD7B0, ""), (0xF900, "Han"), (0xFB00, ""), (0xFB50, "Arabic"),
    (0xFE00, ""), (0xFE70, "Arabic"), (0xFF00, ""), (0x20000, "Han"), (0x32000, ""),
)  # fmt: skip
"""First code point of a range, and its script; empty for signs, digits and unclassified characters."""
_STARTS = tuple(start for start, _ in SCRIPT_RANGES)
FREQUENT_WORDS = {
    "English": "the of and to in is that it was for with as on be by this are",
    "German": "der die und das ist nicht ein eine den von mit sich auf dem zu auch",
    "French": "le la les des et est une dans que pour qui sur pas avec du au",
    "Spanish": "el los las una que del por con para es se su como más lo y",
    "Italian": "il di che la per una non sono con del della gli è si nel anche",
    "Portuguese": "o os uma que não com para do da em são mais como na ao e",
    "Dutch": "de het een van en is dat niet met voor op zijn te aan ook er",
    "Russian": "и в не на что с это как по но из он для все от так",  # noqa: RUF001
    "Ukrainian": "і в не на що з це як та але він для від до є за",  # noqa: RUF001
}
_SCRIPT_OF = {"Russian": "Cyrillic", "Ukrainian": "Cyrillic"}
_LOOK_CHARS = 600
_FEWEST_WORDS_SHARE = 0.08
_WORD = re.compile(r"[^\W\d_]+")


def script_shares(text: str) -> dict[str, float]:
    """Return the share of each script among the letters of the first characters, in descending order; may be empty."""
    counts: dict[str, int] = {}
    for char in text[:_LOOK_CHARS]:
        index = bisect.bisect_right(_STARTS, ord(char)) - 1
        if index >= 0 and (script := SCRIPT_RANGES[index][1]):
            counts[script] = counts.get(script, 0) + 1
    total = sum(counts.values())
    return {name: count / total for name, count in sorted(counts.items(), key=lambda item: -item[1])}


def guess_language(text: str) -> str:
    """Return a language, or a script whose languages are not distinguished, or 'none' for text without letters."""
    shares = script_shares(text)
    if not shares:
        return "none"
    if shares.get("Kana", 0.0) > 0.05:
        return "Japanese"
    script = next(iter(shares))
    named = {"Han": "Chinese", "Hangul": "Korean"}
    if script not in ("Latin", "Cyrillic"):
        return named.get(script, script)
    words = [word.lower() for word in _WORD.findall(text[:_LOOK_CHARS])]
    hits = {
        language: sum(word in frequent.split() for word in words) / max(1, len(words))
        for language, frequent in FREQUENT_WORDS.items()
        if _SCRIPT_OF.get(language, "Latin") == script
    }
    best = max(hits, key=lambda language: hits[language])
    return best if hits[best] >= _FEWEST_WORDS_SHARE else f"{script}, other"
