"""The channels between our processes, at the end of one of them."""

from __future__ import annotations

import pytest

from sidecar.errors import PeerGone
from sidecar.messages import Channel


def test_last_words_are_heard() -> None:
    """What a process said before it died is read, even if it left unread what it was told.

    Linux answers the first read with ECONNRESET then, with messages still waiting: taken for the end, it would lose the
    plan of a freeze or the word that a record is sealed.
    """
    ours, theirs = Channel.pair()
    assert ours.send({"type": "unread"})
    assert theirs.send({"type": "arm"})
    assert theirs.send({"type": "journal"})
    theirs.close()
    try:
        heard = [received[0]["type"] for received in (ours.receive(), ours.receive()) if received is not None]
        assert heard == ["arm", "journal"]
        with pytest.raises(PeerGone):
            ours.receive()
    finally:
        ours.close()
