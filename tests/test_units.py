import pytest

from prune_export import units
from prune_export.errors import BadInputError
from prune_export.target import Target, Workload, parse_workload


@pytest.mark.parametrize(
    ("text", "seconds"), [("40ms", 0.04), ("0.5 s", 0.5), ("800us", 8e-4), ("2min", 120.0), ("1e3ns", 1e-6)]
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("40", "has no unit"),
        ("40 foo", 'unknown unit "foo"'),
        ("-3ms", "must be above zero"),
        ("0ms", "must be above zero"),
        ("ms", "is not a number with a unit"),
        ("", "is not a number with a unit"),
        ("1e999s", "must be above zero"),
        ("nan ms", "is not a number with a unit"),
    ],
)
def test_a_malformed_duration_says_what_is_wrong_and_shows_an_example(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words) as caught:
        units.parse_duration(text, what="--target-latency")
    assert f'--target-latency "{text}"' in str(caught.value)
    assert "40ms" in str(caught.value)


def test_sizes_speedups_and_shares() -> None:
    assert units.parse_bytes("2GiB") == 2**31
    assert units.parse_bytes("1.5MB") == 1_500_000
    assert units.parse_speedup("1.3x") == 1.3
    assert units.parse_share("22%") == pytest.approx(0.22)
    assert units.parse_share("0.22") == pytest.approx(0.22)


@pytest.mark.parametrize("text", ["0x", "x", "1.3", "-1x"])
def test_a_malformed_speedup_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"1\.5x"):
        units.parse_speedup(text)


@pytest.mark.parametrize("text", ["100%", "250%", "1.0", "0%"])
def test_a_share_lies_between_nothing_and_everything(text: str) -> None:
    with pytest.raises(BadInputError, match=r"22%"):
        units.parse_share(text)


def test_printing_keeps_three_digits() -> None:
    assert units.format_duration(0.0382) == "38.2 ms"
    assert units.format_duration(0.00095) == "950 us"
    assert units.format_duration(12.345) == "12.3 s"
    assert units.format_bytes(1.21 * 2**30) == "1.21 GiB"
    assert units.format_bytes(12) == "12 B"
    assert units.format_clock(187) == "3:07"
    assert units.format_clock(3765) == "1:02:45"


def test_a_workload_keeps_the_defaults_of_missing_keys() -> None:
    assert parse_workload("prompt=64, new=16") == Workload(prompt_tokens=64, new_tokens=16)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("promt=64", 'did you mean "prompt"'),
        ("prompt:64", "is not key=number"),
        ("new=1", "new of at least 2"),
        ("batch=0", "at least 1"),
    ],
)
def test_a_malformed_workload_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        parse_workload(text)


def test_the_prompt_shrinks_to_the_context() -> None:
    assert Workload(prompt_tokens=512, new_tokens=128).fitted(512).prompt_tokens == 384
    assert Workload(prompt_tokens=100, new_tokens=128).fitted(512).prompt_tokens == 100
    with pytest.raises(BadInputError, match="context is 64"):
        Workload(new_tokens=128).fitted(64)


def test_a_target_has_a_limit_or_a_speedup() -> None:
    assert str(Target("tpot", 0.04)) == "tpot p90 <= 40.0 ms"
    assert str(Target("tpot", None, speedup=1.3)) == "tpot p90 at least 1.3x faster than dense"
    with pytest.raises(ValueError, match="either"):
        Target("tpot", 0.04, speedup=1.3)
