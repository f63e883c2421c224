"""How translation models name languages, and how a tokeniser and a model are told them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from ccr_lightning.errors import CCRError

# ISO 639-1 (or, where there is none, the code in use) to FLORES-200. Of languages with several written standards the
# one with most readers stands here; zho_Hant, for example, is asked for by its own name.
# fmt: off
_FLORES = {
    "af": "afr_Latn", "am": "amh_Ethi", "ar": "arb_Arab", "as": "asm_Beng", "ast": "ast_Latn", "az": "azj_Latn",
    "ba": "bak_Cyrl", "be": "bel_Cyrl", "bg": "bul_Cyrl", "bn": "ben_Beng", "bs": "bos_Latn", "ca": "cat_Latn",
    "ceb": "ceb_Latn", "cs": "ces_Latn", "cy": "cym_Latn", "da": "dan_Latn", "de": "deu_Latn", "el": "ell_Grek",
    "en": "eng_Latn", "eo": "epo_Latn", "es": "spa_Latn", "et": "est_Latn", "eu": "eus_Latn", "fa": "pes_Arab",
    "fi": "fin_Latn", "fil": "tgl_Latn", "fo": "fao_Latn", "fr": "fra_Latn", "ga": "gle_Latn", "gd": "gla_Latn",
    "gl": "glg_Latn", "gu": "guj_Gujr", "ha": "hau_Latn", "he": "heb_Hebr", "hi": "hin_Deva", "hr": "hrv_Latn",
    "ht": "hat_Latn", "hu": "hun_Latn", "hy": "hye_Armn", "id": "ind_Latn", "ig": "ibo_Latn", "ilo": "ilo_Latn",
    "is": "isl_Latn", "it": "ita_Latn", "ja": "jpn_Jpan", "jv": "jav_Latn", "ka": "kat_Geor", "kk": "kaz_Cyrl",
    "km": "khm_Khmr", "kn": "kan_Knda", "ko": "kor_Hang", "ku": "kmr_Latn", "ky": "kir_Cyrl", "lb": "ltz_Latn",
    "lg": "lug_Latn", "ln": "lin_Latn", "lo": "lao_Laoo", "lt": "lit_Latn", "lv": "lvs_Latn", "mg": "plt_Latn",
    "mi": "mri_Latn", "mk": "mkd_Cyrl", "ml": "mal_Mlym", "mn": "khk_Cyrl", "mr": "mar_Deva", "ms": "zsm_Latn",
    "mt": "mlt_Latn", "my": "mya_Mymr", "nb": "nob_Latn", "ne": "npi_Deva", "nl": "nld_Latn", "nn": "nno_Latn",
    "no": "nob_Latn", "ny": "nya_Latn", "oc": "oci_Latn", "om": "gaz_Latn", "or": "ory_Orya", "pa": "pan_Guru",
    "pl": "pol_Latn", "ps": "pbt_Arab", "pt": "por_Latn", "qu": "quy_Latn", "quz": "quy_Latn", "ro": "ron_Latn",
    "ru": "rus_Cyrl", "rw": "kin_Latn", "sa": "san_Deva", "sd": "snd_Arab", "si": "sin_Sinh", "sk": "slk_Latn",
    "sl": "slv_Latn", "sn": "sna_Latn", "so": "som_Latn", "sq": "als_Latn", "sr": "srp_Cyrl", "st": "sot_Latn",
    "su": "sun_Latn", "sv": "swe_Latn", "sw": "swh_Latn", "ta": "tam_Taml", "te": "tel_Telu", "tg": "tgk_Cyrl",
    "th": "tha_Thai", "ti": "tir_Ethi", "tk": "tuk_Latn", "tl": "tgl_Latn", "tn": "tsn_Latn", "tr": "tur_Latn",
    "ts": "tso_Latn", "tt": "tat_Cyrl", "ug": "uig_Arab", "uk": "ukr_Cyrl", "ur": "urd_Arab", "uz": "uzn_Latn",
    "vi": "vie_Latn", "wo": "wol_Latn", "xh": "xho_Latn", "yi": "ydd_Hebr", "yo": "yor_Latn", "yue": "yue_Hant",
    "zh": "zho_Hans", "zu": "zul_Latn",
}
_ALSO = {  # other codes of the language: macrolanguages, members, ISO 639-1 codes of what hardly differs
    "ar": ("ara",), "az": ("aze",), "et": ("ekk",), "fa": ("fas",), "fil": ("tl",), "ku": ("kur",), "lv": ("lav",),
    "mg": ("mlg",), "mn": ("mon",), "ms": ("msa",), "nb": ("nor", "no"), "ne": ("nep",), "no": ("nor", "nb"),
    "om": ("orm",), "or": ("ori",), "ps": ("pus",), "qu": ("que",), "quz": ("quz", "que", "qu"), "sq": ("sqi",),
    "sw": ("swa",), "tl": ("fil",), "uz": ("uzb",), "yi": ("yid",), "zh": ("cmn",),
}
# fmt: on
_FLORES_CODE = re.compile("[a-z]{3}_[A-Z][a-z]{3}")
_PREFIX_TOKEN = re.compile(">>(.+)<<")


class LanguageRequest(NamedTuple):
    """What makes a model translate from one language into another.

    Attributes:
        src_lang: What the tokeniser's ``src_lang`` must be; None where it has no such setting.
        prefix: Goes before each caption.
        first_token: Id that the translation must begin with; None where it begins freely.
    """

    src_lang: str | None
    prefix: str
    first_token: int | None


def language_codes(language: str) -> tuple[str, ...]:
    """Return the codes under which models may know a language, those that say most first.

    A language that is not in the table is known by its own name only, so a model's own code can be asked for.

    Example:
        >>> language_codes("de")
        ('deu_Latn', 'deu', 'de')
        >>> language_codes("zh")
        ('zho_Hans', 'cmn_Hans', 'zho', 'cmn', 'zh')
        >>> language_codes("ace_Latn")
        ('ace_Latn',)
    """
    if language not in _FLORES:
        return (language,)
    code, script = _FLORES[language].split("_")
    also = _ALSO.get(language, ())
    long = [code, *(other for other in also if len(other) == 3)]
    return tuple(dict.fromkeys([*(f"{name}_{script}" for name in long), *long, language, *also]))


def request_languages(tokenizer: Any, name: str, source: str, target: str) -> LanguageRequest:
    """Return how to ask a model for a translation.

    M2M-100 names languages by ISO 639-1 and NLLB-200 by FLORES-200 codes: both take the source language as a setting
    of the tokeniser and the target language as the first token. A Marian model translates one pair, or into several
    languages of which a token like ``>>deu<<`` before the caption chooses one.

    Args:
        tokenizer: The tokeniser of the model.
        name: Name of the model, for the message.
        source: Language of the captions.
        target: Language to translate into.

    Raises:
        CCRError: The model does not know one of the languages, or names languages in none of these ways.
    """
    if hasattr(tokenizer, "supported_language_codes"):  # Marian
        return _request_of_marian(tokenizer, name, source, target)
    codes = _codes_of(tokenizer)
    if not codes:
        raise CCRError(
            f"{name} is no translation model whose languages are known here; use one of the M2M-100, NLLB-200 or "
            "Marian (OPUS-MT) models."
        )
    src_lang = _find(source, codes, f"{name} cannot translate from {source!r}")
    return LanguageRequest(src_lang, "", codes[_find(target, codes, f"{name} cannot translate into {target!r}")])


def source_code(tokenizer: Any, name: str, language: str) -> str:
    """Return under which code the tokeniser of M2M-100 or NLLB-200 knows the language of a text.

    Args:
        tokenizer: The tokeniser.
        name: Name of the model, for the message.
        language: Of the text.

    Raises:
        CCRError: It does not know the language.
    """
    return _find(language, _codes_of(tokenizer), f"{name} cannot read {language!r}")


def _codes_of(tokenizer: Any) -> dict[str, int]:
    """The ids of languages by their codes."""
    codes: dict[str, int] | None = getattr(tokenizer, "lang_code_to_id", None)  # M2M-100
    if codes is None:  # NLLB-200
        codes = {code: number for code, number in tokenizer.get_added_vocab().items() if _FLORES_CODE.fullmatch(code)}
    return codes


def _request_of_marian(tokenizer: Any, name: str, source: str, target: str) -> LanguageRequest:
    spoken = tokenizer.source_lang
    if spoken in _ISO and spoken not in language_codes(source):  # else a group of languages, or not said
        raise CCRError(f"{name} translates from {_ISO[spoken]!r}, not from {source!r}; use another model.")
    tokens = {found[1]: token for token in tokenizer.get_vocab() if (found := _PREFIX_TOKEN.fullmatch(token))}
    wanted = language_codes(target)
    if tokenizer.target_lang in wanted and tokens.keys().isdisjoint(wanted):
        return LanguageRequest(None, "", None)
    known = tokens or ([tokenizer.target_lang] if tokenizer.target_lang else [])
    if not known:
        raise CCRError(
            f"{name} does not say which language it translates into; set target_lang in its tokenizer_config.json."
        )
    return LanguageRequest(None, tokens[_find(target, known, f"{name} cannot translate into {target!r}")] + " ", None)


def _find(language: str, known: Iterable[str], problem: str) -> str:
    for code in language_codes(language):
        if code in known:
            return code
    names = ", ".join(sorted({_ISO.get(code, code) for code in known}))
    raise CCRError(f"{problem}, it knows {names}; choose some of these or another model.")


_ISO = {language: language for language in _FLORES}
for _language in sorted(_FLORES, key=len):  # of two names of a language the shorter one is ISO 639-1
    for _code in language_codes(_language):
        _ISO.setdefault(_code, _language)
