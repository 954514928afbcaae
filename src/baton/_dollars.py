"""US dollars as exact decimals, and as people read them. Pure."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation, localcontext

from baton.errors import InvalidOption

# No sum of costs has more digits, whatever the program has set for its own decimals.
EXACT = Context(prec=100)
# PostgreSQL's numeric holds more; what is outside of this is a mistake.
_MOST_DIGITS = 40


def exact(option: str, value: object, *, floats: bool = False) -> Decimal:
    """A number of dollars from 0 up, to the last digit.

    Args:
        floats: Take a float as the number that it is written as: 0.1 is a tenth.

    Raises:
        InvalidOption: It is none, or a float where these are refused.
    """
    if isinstance(value, int) and value.bit_length() > 4 * _MOST_DIGITS:
        raise InvalidOption(
            f"{option} is a number of {value.bit_length():,} bits; it must be US dollars from 0 up, with {_MOST_DIGITS} digits "
            "at most"
        )
    wanted = f"{option} is {value!r}; it must be US dollars from 0 up"
    if isinstance(value, float):
        if not floats:
            raise InvalidOption(
                f"{wanted}, as Decimal, text or int: Decimal('{value!r}'), because a float is not exact"
            )
        value = repr(value)
    if not isinstance(value, (Decimal, int, str)) or isinstance(value, bool):
        raise InvalidOption(f"{wanted}, as Decimal, text or int")
    if isinstance(value, str) and len(value) > 2 * _MOST_DIGITS:
        raise InvalidOption(f"{option} is {value[:40]!r}...; it must be US dollars from 0 up")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise InvalidOption(f"{wanted}, such as Decimal('2.50')") from None
    if not number.is_finite() or number < 0 or not _fits(number):
        raise InvalidOption(f"{wanted}, with {_MOST_DIGITS} digits at most before the point and after it")
    # There is a -0, which is not below 0.
    return plain(number.copy_abs())


def _fits(number: Decimal) -> bool:
    _, digits, exponent = number.as_tuple()
    return isinstance(exponent, int) and exponent >= -_MOST_DIGITS and len(digits) + exponent <= _MOST_DIGITS


def plain(number: Decimal) -> Decimal:
    """The same number without zeros at its end, and without an exponent."""
    with localcontext(EXACT):
        short = number.normalize()
        _, _, exponent = short.as_tuple()
        return short.quantize(Decimal(1)) if isinstance(exponent, int) and exponent > 0 else short


def digits(number: Decimal) -> str:
    """All of its digits, as `0.00624`: for JSON, where a number would be read as a float."""
    return format(plain(number), "f")


def text(number: Decimal) -> str:
    """As people read it: `$12.30`, and below a dollar two digits that say something: `$0.0062`."""
    with localcontext(EXACT):
        places = 2 if number >= 1 or number == 0 else max(2, 1 - number.adjusted())
        rounded = plain(number.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP))
        _, _, exponent = rounded.as_tuple()
        assert isinstance(exponent, int)
        return f"${rounded:,.{max(2, -exponent)}f}"
