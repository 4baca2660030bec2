from common.limit import TokenBucket


def test_burst_is_allowed_at_once_and_no_more() -> None:
    bucket = TokenBucket(rate=10.0, burst=3.0)
    assert [bucket.take(5.0) for _ in range(5)] == [True, True, True, False, False]


def test_tokens_come_back_with_time_and_never_beyond_the_burst() -> None:
    bucket = TokenBucket(rate=4.0, burst=2.0)
    assert [bucket.take(0.0), bucket.take(0.0), bucket.take(0.0)] == [True, True, False]
    assert [bucket.take(0.25), bucket.take(0.25)] == [True, False]
    assert [bucket.take(100.0) for _ in range(3)] == [True, True, False]


def test_long_run_keeps_to_the_rate() -> None:
    bucket = TokenBucket(rate=8.0, burst=1.0)
    assert sum(bucket.take(step / 64) for step in range(64 * 10)) == 80


def test_rate_of_zero_allows_nothing() -> None:
    bucket = TokenBucket(rate=0.0, burst=0.0)
    assert not any(bucket.take(float(second)) for second in range(5))
