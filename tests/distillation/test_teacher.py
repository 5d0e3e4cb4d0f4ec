import copy
import hashlib
import pickle

import pytest
import torch
from torch import nn

from lighten.distillation.teacher import Teacher, check_no_shared_parameters, fingerprint
from lighten.errors import UserError


def test_teacher_is_frozen_and_invisible_to_the_module_that_keeps_it(net) -> None:
    owner = nn.Module()
    owner.student = net(2)
    owner.teacher = Teacher(net(4))
    owner.train()
    assert {name.split(".")[0] for name, _ in owner.named_modules() if name} == {"student"}
    assert not any(m.training for m in owner.teacher.module.modules())
    assert not any(p.requires_grad for p in owner.teacher.module.parameters())


def test_teacher_goes_back_to_eval_before_it_speaks(net) -> None:
    inputs = torch.randn(8, 3, 6, 6)
    teacher = Teacher(net(4))
    expected = teacher.module(inputs)
    before = fingerprint(teacher.module)
    teacher.module.train()
    logits = teacher.logits(((inputs,), {}), torch.device("cpu"))
    assert torch.equal(logits, expected)
    assert not logits.requires_grad
    assert fingerprint(teacher.module) == before, "batch norm took statistics of the batch"


def test_teacher_takes_keywords_and_outputs_with_logits() -> None:
    class Wordy(nn.Module):
        def forward(self, *, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": inputs * 2}

    logits = Teacher(Wordy()).logits(((), {"inputs": torch.ones(2, 3)}), torch.device("cpu"))
    assert torch.equal(logits, torch.full((2, 3), 2.0))


def test_fingerprint_is_sha256_over_names_and_bytes() -> None:
    model = nn.Linear(2, 1)
    digest = hashlib.sha256()
    for name in ("bias", "weight"):
        value = getattr(model, name).detach()
        digest.update(f"{name}|torch.float32|{tuple(value.shape)}|".encode() + value.numpy().tobytes())
    assert fingerprint(model) == digest.hexdigest()


def test_fingerprint_sees_one_bit_in_weights_and_buffers(net) -> None:
    model = net(4)
    prints = {fingerprint(model), fingerprint(copy.deepcopy(model).half())}
    assert fingerprint(copy.deepcopy(model)) in prints
    for name in ("0.weight", "1.running_var", "1.num_batches_tracked"):
        other = copy.deepcopy(model)
        other.state_dict()[name].view(-1).view(torch.uint8)[0] ^= 1
        prints.add(fingerprint(other))
    assert len(prints) == 5


def test_teacher_survives_a_pickle(net) -> None:
    teacher = Teacher(net(4))
    assert pickle.loads(pickle.dumps(teacher)).fingerprint == teacher.fingerprint


def test_student_with_parameters_of_the_teacher_is_refused(net) -> None:
    teacher = net(4)
    check_no_shared_parameters(copy.deepcopy(teacher), teacher)
    with pytest.raises(UserError, match=r"share 6 parameters .*0\.weight"):
        check_no_shared_parameters(teacher, teacher)
