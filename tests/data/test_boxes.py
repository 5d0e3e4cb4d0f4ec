import numpy as np
import torch

from lighten.data.boxes import labels_of, mirrored_boxes, mirrored_points, moved, padded


def test_labels_are_centres_and_sides_and_nothing_is_told_by_its_class():
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.8], [0.3, 0.3, 0.9, 0.9]])
    labels = labels_of(torch.tensor([2, -1]), corners)
    assert labels.dtype == torch.float32
    assert torch.allclose(labels, torch.tensor([[2, 0.3, 0.5, 0.4, 0.6], [-1, 0, 0, 0, 0]]), atol=1e-7)


def test_a_mirror_moves_centres_and_leaves_empty_rows():
    labels = torch.tensor([[[3, 0.25, 0.4, 0.1, 0.2], [-1, 0, 0, 0, 0]]])
    turned = mirrored_boxes(labels)
    assert turned.tolist() == torch.tensor([[[3, 0.75, 0.4, 0.1, 0.2], [-1, 0, 0, 0, 0]]]).tolist()
    assert torch.allclose(mirrored_boxes(turned), labels)


def test_a_mirror_swaps_left_and_right_points():
    points = torch.tensor([[0.5, 0.1, 1], [0.2, 0.5, 1], [0.0, 0.0, 0]])
    turned = mirrored_points(points, 1, 2)
    assert torch.equal(turned, torch.tensor([[0.5, 0.1, 1], [0.0, 0.0, 0], [0.8, 0.5, 1]]))
    assert torch.allclose(mirrored_points(turned, 1, 2), points)


def test_pictures_have_as_many_rows_as_the_one_with_most_boxes():
    one, two = np.array([[4, 0.0, 0.0, 0.5, 1.0]]), np.array([[1, 0.2, 0.2, 0.4, 0.6], [0, 0.0, 0.5, 1.0, 1.0]])
    nothing = [-1, 0, 0, 0, 0]
    expected = [
        [[4, 0.25, 0.5, 0.5, 1.0], nothing], [nothing] * 2, [[1, 0.3, 0.4, 0.2, 0.4], [0, 0.5, 0.75, 1.0, 0.5]],
    ]  # fmt: skip
    assert torch.allclose(padded([one, np.zeros((0, 5)), two]), torch.tensor(expected), atol=1e-7)
    assert padded([np.zeros((0, 5))]).tolist() == [[nothing]]


def test_a_box_of_which_little_is_left_goes():
    # the left half of a picture fills the new one: boxes that reach over its right edge by 60, 74, 76 and 100 %
    boxes = [[3, 0.5 - 0.4 * (1 - out), 0.2, 0.5 + 0.4 * out, 0.6] for out in (0.6, 0.74, 0.76, 1.0)]
    labels = moved(padded([np.array(boxes)]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))[0]
    assert labels[:, 0].tolist() == [3, 3, -1, -1]
    assert torch.allclose(labels[0, 1:], torch.tensor([0.84, 0.4, 0.32, 0.4]), atol=1e-6)
    assert not labels[2:, 1:].any()
