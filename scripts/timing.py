"""What the comparing scripts share: intervals of ratios, and what machine this is."""
import os
import platform
import random
import statistics


def interval(pairs, rounds=2000):
    """2.5 % and 97.5 % of the ratio of medians, second by first, over pairs drawn with replacement (Efron, 1979)."""
    draw = random.Random(0)
    ratios = []
    for _ in range(rounds):
        first, second = zip(*(draw.choice(pairs) for _ in pairs))
        ratios.append(statistics.median(second) / statistics.median(first))
    ratios.sort()
    return ratios[int(0.025 * rounds)], ratios[int(0.975 * rounds)]


def is_wide(ratio, low, high):
    """Whether an interval reaches further than 5 % to either side."""
    return max(ratio - low, high - ratio) > 0.05 * ratio


def machine():
    """The processor's name and how many cores this process may use."""
    names = []
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"
