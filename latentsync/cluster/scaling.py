"""How many replicas a queue of tasks needs."""

__all__ = ["IDLE_SECONDS", "wanted"]

IDLE_SECONDS = 300.0  # loading the published model again costs a good part of it


def wanted(
    *, waiting: int, processing: int, replicas: int, least: int, most: int, idle_seconds: float
) -> int:
    """How many there should be: one a task, at once; and fewer when some had nothing for long.

    Args:
        waiting, processing: tasks, of which a replica works on one at a time.
        replicas: that there are, those that are about to leave not counted.
        least, most: between which the answer lies.
        idle_seconds: for how long by now there were more replicas than tasks.
    """
    needed = waiting + processing
    if needed < replicas and idle_seconds < IDLE_SECONDS:
        needed = replicas
    return max(least, min(most, needed))
