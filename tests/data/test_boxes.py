import torch

from lighten.data.boxes import labels_of, mirrored_boxes, mirrored_points


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
