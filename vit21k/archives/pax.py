"""The records of a pax extended header -> key and value pairs."""


def parse_pax(content: bytes) -> dict[bytes, bytes] | None:
    r"""Return the records ``<length> <key>=<value>\n`` of *content*; None if one is malformed."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(content) and content[start]:
        digits, blank, _ = content[start : start + 20].partition(b" ")
        if not blank or not digits.isdigit():
            return None
        end = start + int(digits)
        record = content[start + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if not equals or end > len(content) or not value.endswith(b"\n"):
            return None
        records[key] = value[:-1]
        start = end
    return records
