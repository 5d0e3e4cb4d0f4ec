import itertools

import torch

from lighten.training.seeding import SeedSteps, step_seed


def test_seeds_differ_in_every_coordinate() -> None:
    places = list(itertools.product(range(5), repeat=4))
    seeds = [step_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 11, 0, 0) != step_seed(11, 1, 0, 0)


def test_steps_draw_what_seed_and_place_say_whatever_came_before(plain, batches, trainer) -> None:
    def drawn(seed: int, disturbed: bool) -> list[float]:
        module, found = plain(), []

        def draw(batch, batch_idx) -> None:
            found.append(torch.rand(1).item())
            if disturbed:
                torch.rand(batch_idx)

        module.on_train_batch_start = draw
        trainer(callbacks=[SeedSteps(seed)], enable_checkpointing=False).fit(module, batches, batches)
        return found

    assert len(set(drawn(0, False))) == 6
    assert drawn(0, False) == drawn(0, True)
