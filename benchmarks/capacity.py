"""How many GPUs does a number of clips a day need, for waits of at most a minute?

    python benchmarks/capacity.py --service 12.1                  # measured seconds a clip
    python benchmarks/capacity.py --service 12.1 --spread 0.5 --peak 3 --wait 60

One queue, k replicas, each one clip at a time: M/G/k. Clips come at random, and their lengths
differ. The chance of waiting at all is Erlang's C; who waits waits about as long as in M/M/k, times
(1 + spread^2) / 2, which is Allen and Cunneen's approximation (A. O. Allen, Probability, Statistics
and Queueing Theory, 1990, chapter 5), here used for the tail of the wait as well:

    rate   r = clips a day x peak / 86400          load  a = r x service     (Erlang)
    C(k, a) = B / (1 - a / k x (1 - B)),           B(k) = a B(k-1) / (k + a B(k-1)), B(0) = 1
    P(wait > t) = C exp(-t (k - a) / (service (1 + spread^2) / 2))

The smallest k > a with P(wait > t) <= 5 % is what is printed. deploy/capacity.md says what of.
"""

import argparse
import math

DAY = 86400.0  # s
VOLUMES = (10_000, 1_000_000, 10_000_000)  # clips a day


def late(replicas: int, load: float, service: float, spread: float, wait: float) -> float:
    """The share of clips that wait longer than `wait` seconds; 1 where the queue only grows.

    Args:
        load: replicas that would be busy all the time (Erlang).
        service: mean seconds of work a clip.
        spread: its standard deviation, in shares of the mean.
    """
    if replicas <= load:
        return 1.0
    blocked = 1.0
    for k in range(1, replicas + 1):
        blocked = load * blocked / (k + load * blocked)
    waiting = blocked / (1 - load / replicas * (1 - blocked))
    return waiting * math.exp(-wait * (replicas - load) / (service * (1 + spread**2) / 2))


def needed(load: float, service: float, spread: float, wait: float, share: float = 0.05) -> int:
    """The least number of replicas with which no more than this share of clips waits longer."""
    low, high = math.floor(load), math.floor(load) + 1
    while late(high, load, service, spread, wait) > share:
        low, high = high, high + max(1, high - math.floor(load))
    while high - low > 1:
        middle = (low + high) // 2
        if late(middle, load, service, spread, wait) > share:
            low = middle
        else:
            high = middle
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--service", type=float, required=True, help="measured seconds a clip")
    parser.add_argument("--spread", type=float, default=1.0, help="its deviation / its mean")
    parser.add_argument("--peak", type=float, default=2.0, help="busiest hour / average hour")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds, of the 95th percentile")
    asked = parser.parse_args()
    print(
        "| clips a day | a second, at peak | load, Erlang | replicas | busy at peak | busy a day |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for volume in VOLUMES:
        rate = volume * asked.peak / DAY
        load = rate * asked.service
        count = needed(load, asked.service, asked.spread, asked.wait)
        print(
            f"| {volume:,} | {rate:.2f} | {load:,.1f} | {count:,} | {load / count:.0%} | "
            f"{load / asked.peak / count:.0%} |"
        )


if __name__ == "__main__":
    main()
