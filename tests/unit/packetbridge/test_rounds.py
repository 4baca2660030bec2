from packetbridge.core.rounds import ROUND_SECONDS, Rounds

KEYS = [index.to_bytes(12, "big") for index in range(500)]


def test_each_key_comes_up_once_within_a_round() -> None:
    rounds = Rounds()
    for key in KEYS:
        rounds.add(key, 99.5)
    found = [key for second in range(100, 100 + ROUND_SECONDS) for key in rounds.due(float(second))]
    assert sorted(found) == KEYS
    assert rounds.next_deadline() is None


def test_key_that_was_added_twice_comes_up_once() -> None:
    rounds = Rounds()
    rounds.add(KEYS[0], 5.0)
    rounds.add(KEYS[0], 40.0)
    assert rounds.due(5.0 + ROUND_SECONDS) == [KEYS[0]]
    assert rounds.due(5.0 + 2 * ROUND_SECONDS) == []


def test_nothing_comes_up_before_the_next_second() -> None:
    rounds = Rounds()
    rounds.add(KEYS[0], 5.25)
    assert rounds.next_deadline() == 6
    assert rounds.due(5.75) == []


def test_long_pause_is_made_up_for_by_one_round() -> None:
    rounds = Rounds()
    for key in KEYS:
        rounds.add(key, 5.0)
    assert sorted(rounds.due(100_000.5)) == KEYS
    rounds.add(KEYS[0], 100_000.5)
    assert rounds.next_deadline() == 100_001
