"""Compute the numbers by which spaCy 3 (3.8) stores strings: a symbol's number, else MurmurHash64A of the UTF-8 bytes.

Sources: spacy/strings.pyx and spacy/symbols.pyx, and MurmurHash2 by Austin Appleby (public domain), with the seed 1.
"""

import struct

MULTIPLIER, MASK = 0xC6A4A7935BD1E995, (1 << 64) - 1

# Parts of spacy.symbols.NAMES, in its order.
FLAG_NAMES = (
    "IS_ALPHA IS_ASCII IS_DIGIT IS_LOWER IS_PUNCT IS_SPACE IS_TITLE IS_UPPER LIKE_URL LIKE_NUM LIKE_EMAIL IS_STOP "
    "IS_OOV_DEPRECATED IS_BRACKET IS_QUOTE IS_LEFT_PUNCT IS_RIGHT_PUNCT IS_CURRENCY"
)
ATTRIBUTE_NAMES = (
    "ID ORTH LOWER NORM SHAPE PREFIX SUFFIX LENGTH CLUSTER LEMMA POS TAG DEP ENT_IOB ENT_TYPE HEAD SENT_START "
    "SPACY PROB LANG ADJ ADP ADV AUX CONJ CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X EOL "
    "SPACE"
)
LABEL_NAMES = (
    "PERSON NORP FACILITY ORG GPE LOC PRODUCT EVENT WORK_OF_ART LANGUAGE LAW DATE TIME PERCENT MONEY QUANTITY "
    "ORDINAL CARDINAL acomp advcl advmod agent amod appos attr aux auxpass cc ccomp complm conj cop csubj "
    "csubjpass dep det dobj expl hmod hyph infmod intj iobj mark meta neg nmod nn npadvmod nsubj nsubjpass num "
    "number oprd obj obl parataxis partmod pcomp pobj poss possessive preconj prep prt punct quantmod relcl rcmod "
    "root xcomp acl ENT_KB_ID MORPH ENT_ID IDX _"
)
SYMBOLS = [  # the index of a name is its number
    "",
    *FLAG_NAMES.split(),
    *(f"FLAG{number}" for number in range(19, 64)),
    *ATTRIBUTE_NAMES.split(),
    *(f"DEPRECATED{number:03d}" for number in range(1, 277)),
    *LABEL_NAMES.split(),
]
NUMBERS = {name: number for number, name in enumerate(SYMBOLS)}


def string_hash(text: str) -> int:
    """Return the 64-bit number of a string."""
    number = NUMBERS.get(text)
    return murmur_hash(text.encode()) if number is None else number


def murmur_hash(data: bytes, seed: int = 1) -> int:
    """Return MurmurHash64A of the data."""
    value = (seed ^ (len(data) * MULTIPLIER)) & MASK
    whole = len(data) // 8 * 8
    for (block,) in struct.iter_unpack("<Q", data[:whole]):
        block = block * MULTIPLIER & MASK
        block = (block ^ (block >> 47)) * MULTIPLIER & MASK
        value = (value ^ block) * MULTIPLIER & MASK
    if len(data) > whole:
        value = (value ^ int.from_bytes(data[whole:], "little")) * MULTIPLIER & MASK
    value = (value ^ (value >> 47)) * MULTIPLIER & MASK
    return value ^ (value >> 47)
