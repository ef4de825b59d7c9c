"""What the page asks for: items with what stands on them, and decisions to be kept."""

from typing import Any

from vit21k.review.decisions import ACTIONS, Action, Decision, DecisionLog
from vit21k.review.queue import Item, Queue

MAX_ITEMS = 200

_NO_STRING = "an action or a label is no string"
_WRONG_LABEL = "a label is missing, or is none of the picture's"


class ReviewSession:
    """A queue and the decisions on it, as plain values for JSON."""

    def __init__(self, queue: Queue, log: DecisionLog) -> None:
        self.queue = queue
        self._log = log

    def items(self, start: int) -> dict[str, Any]:
        """Return at most `MAX_ITEMS` items from index *start* on, and the counts.

        Raises:
            IndexError: There are fewer items.
        """
        if start > len(self.queue):
            raise IndexError(start)
        stop = min(start + MAX_ITEMS, len(self.queue))
        return {
            "total": len(self.queue),
            "kinds": self.queue.counts(),
            "decided": self._log.counts(),
            "items": [
                _fields(index, item, self._standing_on(item))
                for index in range(start, stop)
                for item in [self.queue.item(index)]
            ],
        }

    def decide(
        self, index: int, action: object, wnid: object = "", *, is_confirmed: bool = False
    ) -> dict[str, Any]:
        """Keep a decision on item number *index*; it is on disk when this returns.

        Dropping the last label of an image removes the image: that is kept only if *is_confirmed*.

        Returns:
            The item, and under "must_confirm" whether the decision was not kept for that reason.

        Raises:
            IndexError: There is no such item.
            ValueError: It cannot be decided so.
            OSError: The disk is full or failing.
        """
        item = self.queue.item(index)
        decision = _decision(item, action, wnid)
        must_confirm = not is_confirmed and self._drops_last_label(item, decision)
        if not must_confirm:
            self._log.add(decision)
        return {**self._answer(index), "undone": None, "must_confirm": must_confirm}

    def undo(self, index: int) -> dict[str, Any]:
        """Take the last decision back that still stands, whatever item it is on.

        Returns:
            Item number *index*, and under "undone" which item it was; None if none was left.

        Raises:
            IndexError: There is no item number *index*.
            OSError: The disk is full or failing.
        """
        self.queue.item(index)
        last = self._log.undo()
        undone = last and {
            "kind": str(last.kind), "path": last.path, "other_path": last.other_path
        }  # fmt: skip
        return {**self._answer(index), "undone": undone, "must_confirm": False}

    def _answer(self, index: int) -> dict[str, Any]:
        item = self.queue.item(index)
        stands = self._standing_on(item)
        return {"item": _fields(index, item, stands), "decided": self._log.counts()}

    def _standing_on(self, item: Item) -> list[Decision]:
        """Return the decisions that count for *item*; not those on other bytes of that name."""
        stands = self._log.by_item.get(item.key, [])
        return [one for one in stands if not (one.digest and item.digest not in ("", one.digest))]

    def _drops_last_label(self, item: Item, decision: Decision) -> bool:
        dropped = {one.wnid for one in (*self._standing_on(item), decision)}
        is_new = decision not in self._standing_on(item)
        return decision.action is Action.DROP and is_new and dropped >= set(item.wnids)


def _decision(item: Item, action: object, wnid: object) -> Decision:
    if not isinstance(action, str) or not isinstance(wnid, str):
        raise ValueError(_NO_STRING)  # noqa: TRY004 (whoever sent it is wrong, not the caller)
    if bool(wnid) != (action == Action.DROP) or (wnid and wnid not in item.wnids):
        raise ValueError(_WRONG_LABEL)
    if action not in ACTIONS[item.kind]:
        raise ValueError(f"a {item.kind} cannot be decided by {action}")
    return Decision(
        action=Action(action),
        kind=item.kind,
        path=item.path,
        digest=item.digest,
        other_path=item.other_path,
        wnid=wnid,
    )


def _fields(index: int, item: Item, stands: list[Decision]) -> dict[str, Any]:
    return {
        "index": index,
        "kind": str(item.kind),
        "path": item.path,
        "other_path": item.other_path,
        "wnids": item.wnids,
        "names": item.names,
        "about": item.about,
        "num_pictures": item.num_pictures,
        "decisions": [{"action": str(one.action), "wnid": one.wnid} for one in stands],
    }
