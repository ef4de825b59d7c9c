"""What a name may hold, and what is shown of it."""

import pytest

from vit21k.cli import console
from vit21k.errors import one_line


def test_a_plain_name_is_shown_as_it_is():
    assert one_line("n01440764/größe 猫 \\n.JPEG") == "n01440764/größe 猫 \\n.JPEG"


def test_line_breaks_and_codes_of_terminals_are_escaped():
    assert one_line("a\nb\r\tc\x1b[31m\x85\u2028") == r"a\nb\r\tc\x1b[31m\x85\u2028"
    assert len(one_line("".join(map(chr, range(0x3000)))).splitlines()) == 1


@pytest.mark.parametrize("say", [console.done, console.note, console.warn, console.fail_with])
def test_names_of_files_do_not_steer_the_terminal(capsys, say):
    say("`\x1b[31mred\x07\r.jpg`: bad\nsecond line")

    shown = capsys.readouterr().err
    assert "`\\x1b[31mred\\x07\\r.jpg`: bad\nsecond line" in shown
    assert not {"\x1b", "\x07", "\r"} & set(shown)
