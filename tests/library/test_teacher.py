"""Teacher: a frozen network's box distributions."""

import pytest
import torch
from torch import nn

import detops


class Head(nn.Module):
    """Distributions at two strides that depend on the images, on training mode, and on a weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        x = self.drop(self.scale * images).mean(1, keepdim=True)
        return None, [nn.functional.avg_pool2d(x, s).expand(-1, 8, -1, -1) for s in (8, 16)]


def test_it_is_frozen_and_no_part_of_the_student():
    network, images = Head(), torch.rand(2, 3, 32, 32, requires_grad=True)
    teacher = detops.Teacher(network, strides=(8, 16))
    student = nn.Linear(1, 1)
    student.teacher = teacher
    student.train()
    network.train()  # as a careless caller might
    levels = teacher(images)
    assert [tuple(level.shape) for level in levels] == [(2, 8, 4, 4), (2, 8, 2, 2)]
    assert all(torch.equal(a, b) for a, b in zip(levels, teacher(images), strict=True))  # no dropout
    assert not any(level.requires_grad for level in levels)
    assert [name for name, _ in student.named_parameters()] == ["weight", "bias"]
    assert set(student.state_dict()) == {"weight", "bias"}
    assert not network.scale.requires_grad


def test_levels_that_the_student_lacks_are_left_out():
    teacher = detops.Teacher(Head(), strides=(8, 16), student_strides=(16,))
    assert [tuple(level.shape) for level in teacher(torch.rand(1, 3, 32, 32))] == [(1, 8, 2, 2)]
    swapped = detops.Teacher(Head(), (8, 16), distributions=lambda output: output[1][::-1])
    assert swapped(torch.rand(1, 3, 32, 32))[0].shape == (1, 8, 2, 2)


@pytest.mark.gpu
def test_it_follows_the_images():
    assert detops.Teacher(Head(), (8, 16))(torch.rand(1, 3, 32, 32, device="cuda"))[0].is_cuda


def test_a_network_of_buffers_alone_follows_too():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kernel", torch.ones(8, 3, 8, 8))

        def forward(self, images):
            return None, [nn.functional.conv2d(images, self.kernel, stride=8)]

    network = Fixed()
    detops.Teacher(network, (8,))(torch.rand(1, 3, 32, 32, device="meta"))
    assert network.kernel.is_meta


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got function"):
        detops.Teacher(lambda images: images)
    with pytest.raises(ValueError, match=r"student_strides: expected some of the teacher's \[8, 16\], got \[4\]"):
        detops.Teacher(Head(), (8, 16), (4,))
    with pytest.raises(ValueError, match="distributions: expected 1 levels, one per stride, got 2"):
        detops.Teacher(Head(), (8,))(torch.rand(1, 3, 32, 32))
    with pytest.raises(TypeError, match="distributions: expected a list of tensors, got NoneType"):
        detops.Teacher(Head(), (8,), distributions=lambda output: output[0])(torch.rand(1, 3, 32, 32))
