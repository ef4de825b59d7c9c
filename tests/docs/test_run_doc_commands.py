"""tools/docs/run_doc_commands.py: it finds the commands of a page and what is not as documented."""

import os

from run_doc_commands import Command, Page, commands_of, is_shown, pages_with_commands, smaller

PAGE = """
```console
$ vit21k hash tree \\
    --fresh      # again
hash: 3 files
...
$ vit21k relabel
```

```sql
SELECT 1
```

```text
1
```
"""


def test_commands_and_their_output_are_found() -> None:
    assert list(commands_of(PAGE)) == [
        Command("vit21k hash tree \\\n    --fresh", "sh", ["hash: 3 files", "..."]),
        Command("vit21k relabel", "sh", []),
        Command("SELECT 1\n", "sql", ["1"]),
    ]


def test_a_line_that_was_not_printed_is_found() -> None:
    assert is_shown(["a  1", "...", "c"], "a 1\nb\nc\n") is None
    assert is_shown(["a", "c"], "c\na\n") == "c"
    assert is_shown(["5 files"], "6 files\n") == "5 files"
    assert is_shown(["step 1/5 | loss 2.5"], "step 1/5 | loss 3.25\n") is None


def test_a_command_with_another_exit_code_is_not_as_documented(tmp_path) -> None:
    page = Page("docs/any.md", tmp_path, dict(os.environ))

    verdicts = [page.run(Command(text, "sh", [])).verdict for text in ("true", "false", "pip x")]

    assert verdicts == ["as documented", "otherwise", "not run"]


def test_pages_run_on_small_data() -> None:
    assert "docs/prepare.md" in pages_with_commands()
    assert smaller("docs/prepare.md", "vit21k hash /data/x") == "vit21k hash WORLD/../data/x"
