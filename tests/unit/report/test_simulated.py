"""A report on phantoms calls nothing real."""

import pytest

from busray.report.page import GalleryRow, report_html
from busray.report.simulated import words_for
from tests.support.figures import arm_and_floor_figures, png


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("other real images", "other simulated images"),
        ("Real test images", "Simulated test images"),
        ("real-against-real", "simulated-against-simulated"),
        ("really unreal", "really unreal"),
    ],
)
def test_real_is_replaced_as_a_word(text: str, shown: str) -> None:
    assert words_for(simulated=True)(text) == shown
    assert words_for(simulated=False)(text) == text


def test_a_page_on_phantoms_calls_their_images_simulated_and_keeps_prompts_as_they_are() -> None:
    report = {"dataset": {"simulated": True}, "verdicts": ["nearer to the real images"]}
    rows = {"benign": [GalleryRow(png(1), png(2), None, "a real prompt")]}
    page = report_html(report, arm_and_floor_figures(), rows)
    assert "nearer to the simulated images" in page and "Distances to simulated images" in page
    assert "a real prompt" in page
    assert "real" not in page.replace("a real prompt", "")


def test_warnings_stand_before_all_figures_with_what_to_try() -> None:
    report = {"warnings": [{"text": "Do not <train>.", "advice": "Try more."}], "verdicts": ["Order by FID"]}
    page = report_html(report, [], {})
    assert page.index("Do not &lt;train&gt;.") < page.index("Try more.") < page.index("Order by FID")
    assert "Read this first" not in report_html({}, [], {})
