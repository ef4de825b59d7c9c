"""What a name may hold, and what is shown of it."""

from vit21k.one_line import one_line


def test_a_plain_name_is_shown_as_it_is():
    assert one_line("n01440764/größe 猫 \\n.JPEG") == "n01440764/größe 猫 \\n.JPEG"


def test_line_breaks_and_codes_of_terminals_are_escaped():
    assert one_line("a\nb\r\tc\x1b[31m\x85\u2028") == r"a\nb\r\tc\x1b[31m\x85\u2028"
    assert len(one_line("".join(map(chr, range(0x3000)))).splitlines()) == 1
