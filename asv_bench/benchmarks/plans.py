"""Building a plan: what the first call on a new (pattern, n_q, n_k) pays before its kernel starts."""

from subquad.plan import cache_clear

from .common import pattern_of


class Build:
    version = "1"
    # Plans are kept: each sample is one call, after `setup` has emptied the memo.
    number = 1
    repeat = (3, 20, 5.0)
    param_names = ("pattern",)
    params = (["strided", "random", "longformer", "bigbird", "packed"],)
    n = 65_536

    def setup(self, name):
        cache_clear()

    def time_plan(self, name):
        pattern_of(name, self.n).plan(self.n, self.n)

    def track_bytes_per_pair(self, name):
        """Far below the 8 bytes a pair that a list of its column indices would take, but for random keys."""
        plan = pattern_of(name, self.n).plan(self.n, self.n)
        return plan.nbytes / plan.nnz


Build.track_bytes_per_pair.unit = "bytes/pair"
