"""Captions split as the COCO caption server splits them (Penn Treebank tokens, lower case, no punctuation), without Java.

The server calls the Stanford tokenizer 3.4.1 and then drops a list of punctuation tokens. This is a tokenizer of our own that
was fitted to its output; docs/score.md says how often the two agree. For the figures of a paper use `java_tokenizer`.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache

# The server's list. It is compared after lower-casing, so that brackets (-lrb-) stay: its bug, and part of every figure.
_BRACKET_MARKS = ("-LRB-", "-RRB-", "-LCB-", "-RCB-")
PUNCTUATION = frozenset(("''", "'", "``", "`", *_BRACKET_MARKS, ".", "?", "!", ",", ":", "-", "--", "...", ";"))


def ptb_tokens(caption: str) -> str:
    """The caption's tokens, joined by single blanks, as the CIDEr, BLEU and ROUGE of the caption server count them."""
    return " ".join(token for token in _tokens(caption) if token not in PUNCTUATION)


# Every character is first replaced by one that stands for its kind, so that the rules need ASCII only:
# ASCII and a few marks stand for themselves, § is a letter, 0 a digit, ¤ a symbol that is a token, × what is thrown away.
_LETTER, _SYMBOL, _JUNK = "§", "¤", "×"
_A = "[A-Za-z§]"  # a letter
_W = "[A-Za-z§0-9]"
_ACCENTED = "&[aeiou](?:acute|grave|uml);"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u3000\r\n\v\f\x85\u2028\u2029"
# Letters of the tokenizer that are marks to Unicode, and symbols that it knows as tokens: first and last code point.
_MARKS = (
    "00ad 00ad 02c2 02c5 02d2 02df 02e5 036f 0375 0375 0384 0385 03f6 03f6 0483 0487 055a 055f 0591 05bd 05bf 05bf 05c1 "
    "05c2 05c4 05c5 05c7 05c7 0615 061a 064b 065e 0670 0670 06d6 06ed 06fd 06fe 0711 0711 0730 074c 07a6 07b0 07eb 07f3 "
    "0900 0903 093c 093c 093e 094e 0951 0955 0962 0963 0981 0983 09bc 09bc 09be 09cd 0a01 0a03 0a3c 0a4f 0a81 0a83 0abc "
    "0acf 0b82 0b82 0bbe 0bcd 0c01 0c03 0c3e 0c56 0d3e 0d4d 0e31 0e31 0e34 0e3a 0e47 0e4e 0eb1 0eb1 0eb4 0ebc 0ec8 0ecd"
)
_SYMBOLS = (
    "00a1 00a1 00a5 00a9 00ac 00ac 00ae 00b4 00b6 00b9 00bf 00bf 00d7 00d7 00f7 00f7 037e 037e 0387 0387 0589 0589 05be "
    "05be 05c0 05c0 05c3 05c3 05c6 05c6 05f3 05f4 0600 0603 0606 060c 0614 0614 061b 061b 061e 061f 066a 066a 066d 066d "
    "06d4 06d4 0700 070d 07f6 07f8 0964 0965 0e3f 0e3f 0e4f 0e4f 1fbd 1fbd 2016 2017 201a 201a 201e 2023 2030 2038 203b "
    "203b 203e 2042 2044 2044 2070 2070 2074 207e 2080 208e 20a4 20a4 2100 2101 2103 2106 2108 2109 2114 2114 2116 2118 "
    "211e 2123 2125 2125 2127 2127 2129 2129 212e 212e 213a 213b 2140 2144 214a 214d 214f 214f 2155 215e 2190 2bff 3001 "
    "3002 3012 3012 30fb 30fb ff01 ff0f ff1a ff20 ff3b ff40 ff5b ff65 ffe0 ffe1 ffe5 ffe6"
)
_AS_ASCII = {"\x92": "’", **dict.fromkeys("‐‑֊", "-")}
_QUOTES = {**dict.fromkeys("“«\x93", "``"), **dict.fromkeys("”»\x94", "''"), **dict.fromkeys("‘‹‛\x91", "`"), "›": "'"}
_DASHES = "–—―\x96\x97"
_MONEY = {"¢": "cents", "£": "#", "¤": "$", "\x80": "$", "₠": "$", "€": "$"}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_BRACKETS = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": ""}
_ENTITIES |= {"&mdash;": "--", "&ndash;": "--"}


@cache
def _within(table: str) -> frozenset[int]:
    numbers = [int(number, 16) for number in table.split()]
    return frozenset(c for first, last in zip(numbers[::2], numbers[1::2], strict=True) for c in range(first, last + 1))


@lru_cache(maxsize=4096)
def _kind(character: str) -> str:
    """The character that stands for this one in the rules."""
    if character in _SPACES:
        return " "
    if " " <= character < "\x7f" or character in _AS_ASCII or character == "’":
        return _AS_ASCII.get(character, character)
    if character in _QUOTES:
        return "`" if _QUOTES[character] == "`" else "“"
    if character in _DASHES:
        return "–"
    if character in _MONEY:
        return "€"
    if character in _FRACTIONS:
        return "½"
    if character == "…":
        return "…"
    if ord(character) > 0xFFFF:
        return _JUNK
    if ord(character) in _within(_MARKS) or unicodedata.category(character)[0] == "L":
        return _LETTER
    if unicodedata.category(character) == "Nd":
        return "0"
    return _SYMBOL if ord(character) in _within(_SYMBOLS) else _JUNK


# Words that keep a full stop behind them, in lower case; those with a capital only, and those only before a number.
_ABBREVIATIONS = (
    "adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov govs hon "
    "insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof profs pvt rep reps rev sen "
    "sens sfc sgt spc st ste supt treas vs wm al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct "
    "dak dec esq est etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb "
    "nev nov oct okla penn plc pte pty rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc "
    "wyo"
).replace(" ", "|")
_CAPITAL_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash".replace(" ", "|")
# Before these a single letter with a full stop has ended a sentence.
_OPENERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our
    She Since So Some Such That The Their Then There These They This We What When While Yet You
"""
_NUMBER_ABBREVIATIONS = "art|ca|figs?|nos?|op|pp|prop"
_EXTENSIONS = (
    "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp[34g]|3gp|wm[va]|avi|flv|pdf|php|pl|png|"
    "pptx?|ps|py|sql|tar|txt|wav|xml|x|zip"
)
_NUMBER = r"(?:[0-9]*(?:[.:,][0-9]+)+|[0-9]+)"
_URL_END = r"""[^ "<>|.!?(){},-]"""
_SITE = r"""[^ "`'“’<>|.!?(){}\[\],_$=@/-]+\."""
_WWW = r"""www\.(?:[^ "<>|.!?(){},]+\.)+[a-z]{2,4}"""
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"

# What may stand at a place: the longest wins, the first of equally long ones. A group is the token, the rest is looked at.
_RULES = [
    rf"""<[?!][^<>]+>|</?{_NAME}(?: +{_NAME}(?: *= *(?:"[^"]*"|'[^']*'|[\w:.-]+))?)* */?>""",
    r"&(?:amp|lt|gt|quot|nbsp|[mn]dash|apos);|&#[0-9]+;",
    r"(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na",
    # Words, and words in front of n't and of 's, 'm, 'd, 're, 've, 'll.
    rf"{_A}{_W}*(?:[.!?]{_A}{_W}*)*",
    rf"(?:{_A}|{_ACCENTED})(?:{_W}|{_ACCENTED})*",
    r"([a-z]*[a-mo-z])n['’`]t",
    r"('(?:[msd]|re|ve|ll))[^A-Za-z]|’(?:[msd]|re|ve|ll)",
    r"(n['’`]t)[^A-Za-z]",
    r"('t)(?:is|was)",
    # Words with an apostrophe of their own.
    rf"(?-i:[A-HJ-XZn]['’`]{_A}{{2}}{_A}*)",
    rf"{_A}+[aeiouy]['’`](?-i:[aeiouA-Z]){_A}*",
    r"['’]n['’]|(?:[ldj]|dunkin|ol)['’]|['’](?:em|till?|cause|[0-9]{2}s)|cap['’]n|(?:[ey]|ne|e|o)['’]er",
    r"c'est|nor'easter|li'l|s'mores|c'mon",
    r"(y['’])[A-Za-z]|(['’](?:n|[0-9]{2})) ",
    rf"({_A}{_W}*)['’](?:[msd]|re|ve|ll)[^A-Za-z]",
    # Numbers.
    rf"[-+]?{_NUMBER}",
    r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}",
    r"(?:[0-9]{1,4}[- ])?[0-9]{1,4}\\?/[0-9]{1,4}",
    r"(?:\([0-9]{2,3}\) ?|(?:\+\+?)?(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ])[0-9]{3,4}[- ]?[0-9]{3,5}",
    r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
    r"(?-i:[A-Z]*\$)",
    # Compounds.
    rf"(?:[dol]['’`][A-Za-z])?{_W}+(?:[-_](?:[dol]['’`][A-Za-z])?{_W}+)*",
    r"[a-z0-9][a-z0-9.,]*(?:-(?:[a-z](?:\.[a-z])+\.|[a-z0-9]+))+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"(?-i:[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",
    r"c\+\+|[cf]#|pro-|anti-|s&p-500|s&ls|c\.d\.s|-(?:lrb|rrb|lcb|rcb|lsb|rsb)-",
    # Addresses.
    rf"""https?://[^ "<>|(){{}}]+{_URL_END}""",
    rf"""(?:{_WWW}|(?![0-9+])(?:{_SITE})+(?:com|net|org|edu)(?!{_W}))(?:/[^ "<>|()]+{_URL_END})?""",
    r"""<?[a-z0-9][^ "<>|()]*@(?:[^ "<>|(){}.]+\.)*[^ "<>|(){}.;:\[\]]+>?""",
    r"@[a-z_][a-z_0-9]*",
    rf"#{_A}+",
    # Abbreviations and names of files.
    rf"(?:(?:ph|ed)\.d|[a-z]|{_ABBREVIATIONS})\.",
    rf"(?-i:{'|'.join(f'[{w[0].upper()}]{w[1:]}|{w.upper()}' for w in _CAPITAL_ABBREVIATIONS.split('|'))})\.",
    rf"((?:{_NUMBER_ABBREVIATIONS})\.) ?[0-9]",
    rf"([a-z])\. +(?-i:{'|'.join(f'{word}|{word.upper()}' for word in _OPENERS.split())}) ",
    r"[a-z](?:\.[a-z])+\.|(etc\.)[a-z§][^a-z0-9]",
    rf"({_W}+(?:\.{_W}+)*\.(?:{_EXTENSIONS}))[ .?!,]",
    # With a full stop before a comma, semicolon or colon whatever the word is.
    rf"((?:{_W}+[-.])*{_W}+\.)[,;:]",
    # Faces.
    r"([<>]?[:;=](?-i:[-o*'])?(?-i:[()DPdpO\\{@|\[\]]))[^A-Za-z0-9]",
    r"(?-i:[\^x=~<>]\.[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\))",
    # Marks.
    r"[?!]+|-+|\*+|(?:\\\*){1,3}|@+|#+|_+|\.{3,5}|(?:\. ){2,4}\.|<<|>>|''|``|'|`|[’“]{1,2}",
]
_COMPILED = [re.compile(rule, re.IGNORECASE) for rule in _RULES]


# Words that the rules take apart; every other run of ASCII letters between blanks is a token as it stands.
_PLAIN_WORD = re.compile(r"(?!(?:cannot|gonna|gotta|lemme|gimme|wanna)\b)[a-z]+(?= )", re.IGNORECASE)


def _tokens(caption: str) -> Iterator[str]:
    """The tokens in order, in lower case, punctuation included."""
    kinds = "".join(map(_kind, caption)) + " "
    at = 0
    while at < len(caption):
        if kinds[at] in (" ", _JUNK):
            at += 1
            continue
        plain = _PLAIN_WORD.match(kinds, at)
        end = plain.end() if plain else _longest(kinds, at)
        token = caption[at:end].lower() if plain else _written(caption[at:end], kinds[at:end])
        if token:
            yield token
        at = end


def _longest(kinds: str, at: int) -> int:
    """Where the token that begins at `at` ends."""
    best, end = 0, at + 1
    for rule in _COMPILED:
        match = rule.match(kinds, at)
        if match and match.end() - at > best:
            best, end = match.end() - at, match.end(match.lastindex or 0)
    return end


# What an apostrophe of the other kind is written as it is in: the ends that are split off.
_ENDS = re.compile(r"[’'](?:[msd]|re|ve|ll)|n[’']t", re.IGNORECASE)


def _written(text: str, kinds: str) -> str:
    """The token as the Stanford tokenizer prints it, in lower case; empty for a blank."""
    if kinds in _ENTITIES:
        return _ENTITIES[kinds]
    if kinds == '"' or set(kinds) <= {"“", "’", "`"}:
        return "".join(_QUOTES.get(c, "'") for c in text) if kinds != '"' else "''"
    if kinds in ("€", "½"):
        return _MONEY.get(text) or _FRACTIONS[text]
    if kinds == "–" or (set(kinds) == {"-"} and 2 <= len(kinds) <= 4):
        return "--"
    if kinds == "…" or (kinds.strip(". ") == "" and len(kinds) > 1):
        return "..."
    if kinds == "-" or text == "\u00ad":
        return "-"
    token = text.lower().replace(" ", "\u00a0").replace("\u00ad", "")
    if kinds[0] == "<" and kinds[-1] == ">":
        return token
    if _ENDS.fullmatch(kinds):
        token = token.replace("\x92", "'").replace("’", "'")
    token = "".join("`" if _kind(c) == "`" else c for c in token)
    token = token.replace("&amp;", "&").replace("(", "-lrb-").replace(")", "-rrb-")
    return _BRACKETS.get(token, token)  # square and curly ones of a face stay
