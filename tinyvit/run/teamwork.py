"""How the processes that train together spend the time of an epoch, and which of them keeps the others waiting."""

from statistics import median

from ..backend import Group

_SLOW = 1.5  # times the median of the time that all processes compute


class Teamwork:
    """The time in communication of the processes of a group, epoch by epoch. All of them must call `finish_epoch`.

    A process that has computed waits for the others in the next communication. So the one that communicates least is
    the slowest.

    Attributes
    ----------
    share : the share of the last epoch's time that the processes spent in communication, on average; 0 for one alone.
    slowest : the rank of a process that computed for longer than 1.5 times the median in the last epoch, else None.
    ratio : its time in units of the median.
    """

    def __init__(self, group: Group) -> None:
        self._group, self._before = group, 0.0
        self.share, self.slowest, self.ratio = 0.0, None, 1.0

    share: float
    slowest: int | None
    ratio: float

    def finish_epoch(self, seconds: float) -> None:
        """Compare the processes; `seconds` is the time that this one took for the epoch's steps."""
        if self._group.size == 1:
            return
        spent, self._before = self._group.seconds - self._before, self._group.seconds
        every = self._group.gather((seconds, min(spent, seconds)))
        computing = [whole - waiting for whole, waiting in every]
        self.share = sum(waiting / whole for whole, waiting in every) / len(every)
        usual = median(computing)
        self.ratio = max(computing) / usual if usual > 0 else 1.0
        self.slowest = computing.index(max(computing)) if self.ratio > _SLOW else None
        self._before = self._group.seconds  # without what comparing took

    def __str__(self) -> str:
        """Return the share, and the slowest process, as the end of a line."""
        if self._group.size == 1:
            return ""
        slow = f", rank {self.slowest} computes {self.ratio:.1f} times as long as others" * (self.slowest is not None)
        return f"  {100 * self.share:.0f} % in communication{slow}"
