import copy
import hashlib
import pickle
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from distillation_nets import images, resnet
from need import need
from torch import nn

from lighten.distillation.module import DistillationModule
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


def test_teachers_are_averaged_with_their_weights(fit) -> None:
    teachers = [resnet(4).eval(), resnet(8).eval()]
    module = DistillationModule(resnet(4), teachers, teacher_weights=[3, 1])
    batch = next(iter(images()))[0]
    expected = 0.75 * teachers[0](batch) + 0.25 * teachers[1](batch)
    torch.testing.assert_close(module.teacher.logits(((batch,), {}), torch.device("cpu")), expected)
    other = DistillationModule(resnet(4), teachers, teacher_weights=[1, 1])
    assert other.teacher.fingerprint != module.teacher.fingerprint
    trainer = fit(module, images())
    assert "teacher/accuracy" in trainer.callback_metrics
    for given, told in (([1], "expected 2 numbers"), ([1, 0], "expected 2 numbers above zero")):
        with pytest.raises(UserError, match=told):
            DistillationModule(resnet(4), teachers, teacher_weights=given)


def test_teacher_computes_in_the_precision_asked_for() -> None:
    batch, teacher = next(iter(images()))[0], resnet(8).eval()
    exact = teacher(batch)
    call, cpu = ((batch,), {}), torch.device("cpu")
    half = DistillationModule(resnet(4), teacher, teacher_precision="bfloat16").teacher.logits(call, cpu)
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half, teacher(batch))
    assert not torch.equal(half.float(), exact)
    with torch.autocast("cpu", torch.bfloat16):
        full = DistillationModule(resnet(4), teacher, teacher_precision="float32").teacher.logits(call, cpu)
    assert torch.equal(full, exact)
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        DistillationModule(resnet(4), teacher, teacher_precision="bfloat")


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_compiled_teacher_says_the_same() -> None:
    compiles = shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()
    need(compiles, "a C++ compiler and Python's headers, as torch.compile does", "apt-get install g++ python3-dev")
    batch, teacher = next(iter(images()))[0], resnet(4).eval()
    found = DistillationModule(resnet(4), teacher, compile_teacher=True).teacher
    torch.testing.assert_close(found.logits(((batch,), {}), torch.device("cpu")), teacher(batch), rtol=1e-4, atol=1e-5)
    assert found.modules == [teacher]


def test_a_teacher_without_weights_is_told() -> None:
    with torch.device("meta"):
        empty = nn.Linear(4, 4)
    with pytest.raises(UserError, match="it is on the meta device; build it outside"):
        DistillationModule(nn.Linear(4, 4), empty)
