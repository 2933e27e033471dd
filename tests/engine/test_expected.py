"""Where a text stands in the one that was expected."""

from __future__ import annotations

from openmercury.engine.expected import KNOWN, Expected

OLD = list(range(10, 40))


def follow(text: list[int], most: int = 4) -> list[list[int]]:
    """What is drafted behind each beginning of the text."""
    expected = Expected(OLD, 0)
    return [expected.drafts(text[:end], most) for end in range(len(text) + 1)]


def test_the_expected_text_itself() -> None:
    drafts = follow(OLD)
    assert drafts[0] == OLD[:4]
    assert drafts[26] == OLD[26:]
    assert drafts[30] == []


def test_an_edit_is_left_behind_known_tokens() -> None:
    for text in ([*OLD[:8], 1, 2, *OLD[8:]], [*OLD[:8], 1, *OLD[9:]], [*OLD[:8], *OLD[12:]]):
        drafts = follow(text)
        lost = [end for end, each in enumerate(drafts) if not each]
        assert lost[0] == 9
        behind = lost[-2] + 1  # the last is the end
        assert text[behind - KNOWN : behind] == OLD[OLD.index(text[behind - 1]) + 1 - KNOWN :][:KNOWN]
        assert drafts[behind] == text[behind : behind + 4]


def test_of_two_places_the_next_one_is_meant_and_else_the_last() -> None:
    expected = Expected([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 6], 0)
    assert expected.drafts([1, 2, 3, 4, 9, 1, 2, 3], 1) == [5]
    expected = Expected([1, 2, 3, 4, 1, 2, 3, 5, 8], 0)
    assert expected.drafts([1, 2, 3, 4, 1, 2, 3, 5, 9, 1, 2, 3], 1) == [5]


def test_the_prompt_is_not_looked_up() -> None:
    expected = Expected(OLD, 5)
    assert expected.drafts([7, *OLD[3:7]], 2) == OLD[:2]
    assert expected.drafts([7, *OLD[3:7], *OLD[:2]], 2) == OLD[2:4]
