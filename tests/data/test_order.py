"""The order of an epoch: all examples once, another one for each epoch and seed, and the same for the same."""

from scumble.data.order import order_of


def test_every_example_comes_once_an_epoch():
    assert sorted(order_of(100, 0, 0)) == list(range(100))


def test_seed_and_epoch_decide_alone():
    assert order_of(100, 3, 1) == order_of(100, 3, 1)
    orders = {tuple(order_of(100, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_largest_seed_is_taken():
    assert len(order_of(5, 2**32 - 1, 10_000)) == 5
