"""What programs make of cells: spreadsheets drop leading zeros and digits of numbers; all mark missing values."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

_INVISIBLE = {"Cf", "Zs"}  # Unicode's format characters, such as zero-width spaces, and spaces
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
_INTEGER = re.compile(r"(\d+)[.,]0")
_SCIENTIFIC = re.compile(r"(\d)(?:[.,](\d+))?E\+(\d+)", re.IGNORECASE)  # 123456789012 as 1,23457E+11
_LONGEST = 300  # digits of a floating point number
_NOT_GIVEN = (  # by spreadsheets, databases and pandas
    r"[-._*/\u2013\u2014]+|#?n/[adv]\.?|<na>|#n[adv](?: n/a)?|[#(<]?(?:null|nil|none|missing|blank)[!)>]?|#[\w/]+[!?]"
    r"|-?nan|-?1\.#\w+|\\n"
)
_FEW_SCORES = 3  # no text has as many in the places of zones by chance
_BETWEEN_WORDS = re.compile(r"[\s._-]+")
_MISSING = re.compile(_NOT_GIVEN, re.IGNORECASE)
_UNKNOWN = re.compile(rf"{_NOT_GIVEN}|-\d+|9{{1,3}}|n\.?[adv]\.?|nat|unk\.?|k\. ?a\.", re.IGNORECASE)
EXACT_DIGITS = 15  # a spreadsheet keeps this many, and puts zeros after them


def lost_digits(identifier: str) -> bool:
    """Return whether a spreadsheet may have dropped the last digits or replaced them with zeros."""
    is_long = len(identifier) > EXACT_DIGITS and identifier.isdecimal()
    return is_scientific(identifier) or (is_long and not identifier[EXACT_DIGITS:].strip("0"))


def clean_id(cell: str) -> str:
    """Return the identifier as in file names: composed Unicode, and `123` where a program made it `123.0`."""
    identifier = cell.strip()
    if not identifier.isascii():
        identifier = unicodedata.normalize("NFC", identifier)
    match = _INTEGER.fullmatch(identifier) if identifier.endswith((".0", ",0")) else None
    return match[1] if match else identifier


def plain_id(identifier: str) -> str:
    """Return the identifier without case, spaces, leading zeros and invisible characters, to compare it."""
    text = unicodedata.normalize("NFKC", identifier).casefold()
    seen = (character for character in text if unicodedata.category(character) not in _INVISIBLE)
    return _LEADING_ZEROS.sub("", "".join(seen))


def bare_name(name: str) -> str:
    """Return a column's name in lower case without what may stand between its words."""
    return _BETWEEN_WORDS.sub("", name.casefold())


def hides_rows(cells: Sequence[str], separator: str, places: Sequence[int], is_score: Callable[[str], bool]) -> bool:
    """Return whether a cell goes from a quote in one row to a quote in another: the scores in it show what they are."""
    length = len(cells)
    for place, cell in enumerate(cells):
        if len(lines := cell.splitlines()) > 1:
            first, *middle, last = (line.split(separator) for line in lines)
            begun, ended = [*cells[:place], *first], [*last, *cells[place + 1 :]]
            if min(len(begun), len(ended)) < length:
                continue
            after, before = [at for at in places if at > place], [at for at in places if at < place]
            whole = ((row, places) for row in middle if len(row) >= length)
            for row, quoted in ((begun[-length:], after), (ended, before), *whole):
                if sum(is_score(row[at]) for at in quoted) >= _FEW_SCORES:
                    return True
    return False


def merged_numbers(identifiers: Iterable[str]) -> set[str]:
    """Return the numbers that occur several times and lost digits, so that each may stand for several."""
    counts = Counter(identifiers)
    long = [identifier for identifier in counts if identifier.isdecimal() and len(identifier) > EXACT_DIGITS]
    all_cut = all(map(lost_digits, long))  # by chance, one in ten ends with a zero
    return {
        identifier
        for identifier, count in counts.items()
        if count > 1 and (is_scientific(identifier) or (all_cut and lost_digits(identifier)))
    }


def marks_missing(cell: str) -> bool:
    """Return whether a cell says that there is no value: neither a number nor a person's initials."""
    return bool(_MISSING.fullmatch(cell))


def may_mean_unknown(cell: str) -> bool:
    """Return whether a cell means an unknown value in other tables; some are typing errors in this one."""
    return bool(_UNKNOWN.fullmatch(cell))


def is_scientific(identifier: str) -> bool:
    """Return whether an identifier is a number in scientific notation."""
    return bool(_SCIENTIFIC.fullmatch(identifier))


class NumericNames:
    """Names of files that are numbers, to be found by what a spreadsheet makes of them."""

    def __init__(self, names: Iterable[str]) -> None:
        """Keep the numbers among the names."""
        self._numbers = sorted({name for name in names if name.isdecimal() and len(name) < _LONGEST})
        self._by_form: dict[tuple[str, int], dict[str, list[str]]] = {}

    def could_be(self, identifier: str) -> list[str]:
        """Return the names that a spreadsheet may have turned into this identifier."""
        match = _SCIENTIFIC.fullmatch(identifier)
        if match:
            digits = match[1] + (match[2] or "")
            return self._forms("rounded", len(digits)).get(f"{digits}E{int(match[3])}", [])
        if not identifier.isdecimal() or len(identifier) >= _LONGEST:
            return []
        kinds = [("without zeros", 0)]
        if len(identifier) > EXACT_DIGITS:
            kinds += [("cut", EXACT_DIGITS), ("rounded", EXACT_DIGITS)]
        found = {name for kind in kinds for name in self._forms(*kind).get(_form(identifier, *kind), [])}
        return sorted(found - {identifier})

    def _forms(self, kind: str, num_digits: int) -> dict[str, list[str]]:
        """Return the names by their form, in one pass for all identifiers."""
        if (kind, num_digits) not in self._by_form:
            forms = defaultdict(list)
            for name in self._numbers:
                forms[_form(name, kind, num_digits)].append(name)
            self._by_form[kind, num_digits] = dict(forms)
        return self._by_form[kind, num_digits]


def _form(number: str, kind: str, num_digits: int) -> str:
    if kind == "without zeros":
        return number.lstrip("0")
    if kind == "cut":
        return f"{number[:num_digits]} of {len(number)}"
    mantissa, exponent = f"{int(number):.{num_digits - 1}E}".split("E")
    return f"{mantissa.replace('.', '')}E{int(exponent)}"
