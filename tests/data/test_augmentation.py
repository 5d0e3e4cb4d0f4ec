import numpy as np
import pytest
from picture_files import noise

from lighten.data.augmentation import Augmentation, colours, crop_box, erased, geometry, mixing
from lighten.errors import UserError

SAMPLES = np.arange(4000)
EPOCHS = np.zeros(4000, np.int64)


def how(**changes):
    none = {"seed": 0, "flip": False, "crop": 1.0, "colour": 0.0}
    return Augmentation(**none | changes)


def draws(**changes):
    middle = dict.fromkeys(
        ("area", "ratio", "top", "left", "flip", "brightness", "contrast", "saturation", "erase", "erase_area",
         "erase_ratio", "erase_top", "erase_left", "mix", "share", "cut_top", "cut_left"), 0.5,
    )  # fmt: skip
    return middle | changes


def ramp(height, width):
    """Red says the column, green the row."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.dstack([columns, rows, 0 * rows]).astype(np.uint8)


def test_draws_are_even_and_depend_on_seed_epoch_sample_and_thing():
    drawn = how().draw(EPOCHS, SAMPLES)
    for values in drawn.values():
        assert 0 <= values.min() < 0.01
        assert 0.99 < values.max() < 1
        assert abs(values.mean() - 0.5) < 0.02
    names = list(drawn)
    together = np.corrcoef([drawn[name] for name in names])
    assert np.abs(together - np.eye(len(names))).max() < 0.06
    for other in (how(seed=1).draw(EPOCHS, SAMPLES), how().draw(EPOCHS + 1, SAMPLES)):
        assert abs(np.corrcoef(other["area"], drawn["area"])[0, 1]) < 0.06
    alone = how().draw(EPOCHS[:1], SAMPLES[7:8])
    assert all(alone[name][0] == drawn[name][7] for name in names)


@pytest.mark.parametrize("flip", [0.0, 0.9])
@pytest.mark.parametrize(("area", "ratio", "top", "left"), [(0.0, 0.5, 0, 0), (0.5, 0.9, 1, 0.3), (0.9, 0.0, 0.7, 1)])
def test_a_crop_shows_what_lies_where_the_box_says(area, ratio, top, left, flip):
    image = ramp(200, 240)
    given = draws(area=area, ratio=ratio, top=top, left=left, flip=flip)
    found = geometry(how(crop=0.4, flip=True), given, image).astype(int)
    share, aspect = 0.4 + 0.6 * area, (4 / 3) ** (2 * ratio - 1)
    height, width = min(1, (share / aspect) ** 0.5) * 200, min(1, (share * aspect) ** 0.5) * 240
    columns = left * (240 - width) + (np.arange(240) + 0.5) * width / 240 - 0.5
    rows = top * (200 - height) + (np.arange(200) + 0.5) * height / 200 - 0.5
    if flip < 0.5:
        columns = columns[::-1]
    assert np.abs(found[..., 0] - columns.clip(0, 239)[None]).max() <= 1
    assert np.abs(found[..., 1] - rows.clip(0, 199)[:, None]).max() <= 1


def test_masks_go_where_their_images_go():
    image = ramp(200, 200)
    mask = image[..., 0] // 50
    drawn = how().draw(EPOCHS[:20], SAMPLES[:20])
    for row in range(20):
        each = {name: values[row] for name, values in drawn.items()}
        setting = how(crop=0.3, flip=True)
        moved = geometry(setting, each, image)[..., 0].astype(int)
        found = geometry(setting, each, mask, nearest=True)
        assert set(np.unique(found)) <= {0, 1, 2, 3}
        inside = np.abs((moved + 25) % 50 - 25) > 2
        assert np.array_equal(found[inside], moved[inside] // 50)


def test_nothing_is_changed_where_nothing_is_asked_for():
    image = noise()
    assert np.array_equal(geometry(how(), draws(), image), image)
    assert np.array_equal(colours(how(), draws(), image), image)
    assert np.array_equal(erased(how(), draws(), image, np.zeros(3)), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_as_written_out(channels):
    image = noise(20, 30, channels).reshape(20, 30, channels)
    given = draws(brightness=0.1, contrast=0.8, saturation=0.3)
    brightness, contrast, saturation = (1 + 0.5 * (2 * value - 1) for value in (0.1, 0.8, 0.3))
    grey = np.array([299, 587, 114]) / 1000 if channels == 3 else np.ones(1)
    expected = (image * brightness).clip(0, 255)
    mean = (expected @ grey).mean()
    expected = (mean + contrast * (expected - mean)).clip(0, 255)
    if channels == 3:
        luma = (expected @ grey)[..., None]
        expected = (luma + saturation * (expected - luma)).clip(0, 255)
    assert np.abs(colours(how(colour=0.5), given, image) - expected).max() <= 3


def test_erasing_puts_in_one_rectangle_of_the_share_that_is_drawn():
    image = noise(100, 100)
    drawn = how().draw(EPOCHS[:400], SAMPLES[:400])
    shares = []
    for row in range(400):
        out = erased(how(erase=0.5), {name: values[row] for name, values in drawn.items()}, image, np.array([1, 2, 3]))
        changed = (out != image).any(2)
        if not changed.any():
            continue
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert (out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == [1, 2, 3]).all()
        shares.append(changed.mean())
    assert 160 < len(shares) < 240
    assert 0.015 < min(shares) < 0.05
    assert 0.28 < max(shares) < 0.36


def test_mixing_as_often_and_as_much_as_asked_for():
    setting = how(mixup=0.2, cutmix=0.3)
    plan = mixing(setting, setting.draw(EPOCHS, SAMPLES), (40, 60))
    assert abs(plan.mixed.mean() - 0.2) < 0.03
    assert abs(plan.cut.mean() - 0.3) < 0.03
    assert not (plan.mixed & plan.cut).any()
    assert (plan.shares[~plan.mixed & ~plan.cut] == 1).all()
    assert 0.5 <= plan.shares[plan.mixed].min() < 0.51
    top, left, bottom, right = plan.boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= 40).all()
    assert (right <= 60).all()
    area = (bottom - top) * (right - left) / 2400
    assert np.abs(plan.shares - 1 + area)[plan.cut].max() < 1e-6
    assert area.max() <= 0.53
    partners = setting.partners(EPOCHS, SAMPLES, 10)
    assert np.bincount(partners, minlength=10).min() > 300


def test_a_box_never_leaves_the_image():
    for area in (0.01, 0.5, 1.0):
        for ratio in (0.3, 1.0, 3.3):
            for place in (0.0, 0.37, 1.0):
                left, top, right, bottom = crop_box((37, 53), area, ratio, place, place)
                assert 0 <= left < right <= 53
                assert 0 <= top < bottom <= 37


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"crop": 0.0}, r"crop=0\.0, expected a share of the area above 0"),
        ({"colour": 1.5}, r"colour=1\.5, expected 0 \(none\) to 1"),
        ({"erase": -1}, r"erase=-1, expected 0 \(none\) to 1"),
        ({"mixup": 0.6, "cutmix": 0.6}, "come to more than all images"),
    ],
)
def test_values_out_of_range_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        how(**changes)
