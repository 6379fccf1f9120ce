"""How a value is printed: one way for every sentence, table and page."""

from dataclasses import replace

from busray.records import Interval
from busray.report.metrics import METRICS, arms_text, excludes_zero, p_equation, p_text
from tests.support.figures import difference, figure


def test_a_value_is_printed_with_its_factor_its_digits_and_its_interval() -> None:
    kid = replace(figure("kid", 0.08, "base"), interval=Interval(0.07, 0.0951))
    assert METRICS["kid"].text(kid) == "80.00 [70.00, 95.10]"
    assert METRICS["kid"].text(kid, "+") == "+80.00 [+70.00, +95.10]"
    assert METRICS["kid"].text(replace(kid, interval=None)) == "80.00"
    assert METRICS["kid"].text(None) == METRICS["kid"].interval(None) == "–"


def test_a_value_that_rounds_to_zero_has_no_minus_sign() -> None:
    assert METRICS["accuracy"].number(-0.0001) == "0.000" and METRICS["accuracy"].number(-0.0001, "+") == "+0.000"


def test_a_p_value_is_never_printed_as_zero() -> None:
    assert (p_text(0.0314), p_text(0.0009)) == ("0.031", "<0.001")
    assert (p_equation(0.0314), p_equation(0.0009)) == ("p = 0.031", "p < 0.001")


def test_a_difference_names_both_arms_and_excludes_zero_by_its_interval() -> None:
    assert arms_text(difference(-0.06)) == "lora+ti - base" and arms_text(figure("kid", 0.0, "base")) == "base"
    assert excludes_zero(difference(-0.06)) and not excludes_zero(difference(0.004))
    assert not excludes_zero(replace(difference(-0.06), interval=None))
