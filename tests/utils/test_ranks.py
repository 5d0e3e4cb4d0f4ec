import random

import pytest
from scipy.stats import spearmanr

from lighten.utils.ranks import spearman


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_scipys(ties):
    draw = random.Random(3)
    for _ in range(20):
        one = [draw.choice([1, 2, 3]) if ties else draw.random() for _ in range(9)]
        other = [draw.choice([1, 2, 3]) if ties else draw.random() for _ in range(9)]
        assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None
