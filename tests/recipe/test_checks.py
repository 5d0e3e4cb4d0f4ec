import pytest

from lighten.errors import RecipeError
from lighten.recipe.checks import RecipeWarning, check
from lighten.recipe.schema import Recipe, settings_of


def recipe(**changes):
    """A sound recipe, changed by dotted keys with ``__`` for dots."""
    made = Recipe(name="mine", student="resnet20", student_options={"width": 4})
    made.compress.prune.amount = 0.5
    made.compress.quantize.begin = 0.7
    for key, value in changes.items():
        *path, last = key.split("__")
        target = made
        for part in path:
            target = getattr(target, part)
        assert hasattr(target, last), key
        setattr(target, last, value)
    return made


def distilled(**changes):
    return recipe(teacher="cnn", teacher_fit__max_epochs=1, **changes)


SOUND = [
    {},
    {"compress__prune__amount": None},
    {"compress__quantize__begin": None},
    {"compress__prune__begin": 0.4, "compress__prune__end": 0.4},
    {"compress__quantize__begin": 0.2},
    {"trainer__devices": [0, 1]},
    {"trainer__devices": "auto"},
    {"trainer__limit_train_batches": 3},
    {"trainer__strategy": "ddp"},
    {"trainer__max_epochs": -1, "trainer__max_steps": 5},
    {"id": "2026-01-01_a.b"},
    {"data": "cifar10", "data_options": {"validation": 10}},
    {"compress__quantize__begin": None, "compress__quantize__mode": "static", "compress__quantize__max_drop": 0.01},
    {"compress__quantize__begin": None, "compress__quantize__mode": "float16", "delivery__targets": ["onnx", "litert"]},
    {"compress__quantize__ranges": "lsq", "compress__quantize__max_drop": 0.01, "student_fit__max_epochs": 1},
    {"delivery__targets": ["onnx", "openvino", "litert", "executorch", "pt2"]},
]


@pytest.mark.parametrize("changes", SOUND, ids=str)
def test_sound_recipes_pass(changes):
    made = recipe(**changes)
    assert check(made) is made


def test_a_teacher_alone_is_enough_to_do():
    check(distilled(compress__prune__amount=None, compress__quantize__begin=None))


UNSOUND = [
    ({"student": "resnet_20"}, "student='resnet_20': did you mean 'resnet20'? Choices: auto, bert_rows, cnn"),
    ({"data": "fashion_mnits"}, "data='fashion_mnits': did you mean 'fashion_mnist'?"),
    ({"logger": "wndb"}, "logger='wndb': did you mean 'wandb'?"),
    ({"optimizer__name": "adam"}, "optimizer.name='adam': did you mean 'adamw'?"),
    ({"optimizer__schedule": "cosin"}, "optimizer.schedule='cosin': did you mean 'cosine'?"),
    ({"student_fit__optimizer__lr": 0.0}, "student_fit.optimizer.lr=0.0: expected a number above 0"),
    ({"optimizer__lr": float("inf")}, "optimizer.lr=inf: expected a number above 0"),
    ({"optimizer__warmup": 1.0}, "optimizer.warmup=1.0: expected a number at least 0 and below 1"),
    ({"batch_size": 1}, "batch_size=1: expected a whole number, 2 or more"),
    ({"workers": -1}, "workers=-1: expected a whole number, 0 or more"),
    ({"seed": -1}, "seed=-1: expected a whole number, 0 to 4294967295"),
    ({"seed": 2**32}, "seed=4294967296: expected a whole number, 0 to 4294967295"),
    ({"compress__prune__score": "fpgn"}, "compress.prune.score='fpgn': did you mean 'fpgm'? Choices: auto, bn_scale"),
    ({"compress__prune__target": "mac"}, "compress.prune.target='mac': did you mean 'macs'?"),
    ({"compress__prune__schedule": "qubic"}, "compress.prune.schedule='qubic': did you mean 'cubic'?"),
    ({"compress__prune__rate_norm": 0.0}, "compress.prune.rate_norm=0.0: expected a number above 0 and at most 1"),
    (
        {"compress__prune__target": "latency", "compress__prune__scope": "global"},
        "compress.prune.target=latency: expected compress.prune.scope uniform or sensitivity",
    ),
    ({"compress__prune__scope": "globall"}, "compress.prune.scope='globall': did you mean 'global'?"),
    ({"compress__prune__amount": 1.0}, "compress.prune.amount=1.0: expected a number above 0 and below 1"),
    ({"compress__prune__amount": 0.0}, "compress.prune.amount=0.0: expected a number above 0 and below 1"),
    ({"compress__prune__amount": float("nan")}, "compress.prune.amount=nan: expected a number above 0 and below 1"),
    ({"compress__prune__end": 0.05}, "compress.prune.end=0.05: expected at least compress.prune.begin=0.1"),
    ({"compress__prune__end": 1.5}, "compress.prune.end=1.5: expected a number at least 0 and at most 1"),
    ({"compress__prune__align": 0}, "compress.prune.align=0: expected a whole number, 1 or more"),
    ({"compress__quantize__begin": 1.0}, "compress.quantize.begin=1.0: expected a number at least 0 and below 1"),
    (
        {"compress__quantize__freeze": 0.6},
        "compress.quantize.freeze=0.6: expected at least compress.quantize.begin=0.7",
    ),
    ({"compress__quantize__ranges": "minmax"}, "compress.quantize.ranges='minmax': did you mean 'min_max'?"),
    ({"compress__quantize__weight_bits": 9}, "compress.quantize.weight_bits=9: expected a whole number"),
    ({"compress__quantize__mode": "statik"}, "compress.quantize.mode='statik': did you mean 'static'?"),
    ({"compress__quantize__mode": "static"}, "compress.quantize.begin=0.7: mode static comes after training"),
    ({"compress__quantize__calibration": 0}, "compress.quantize.calibration=0: expected a whole number, 1 or more"),
    ({"compress__quantize__max_drop": 1.0}, "compress.quantize.max_drop=1.0: expected a number at least 0 and below 1"),
    ({"compress__quantize__max_drop": 0.1}, "compress.quantize.max_drop=0.1: layers are chosen on a trained student"),
    (
        {"delivery__targets": ["litert"]},
        "delivery.targets=[litert]: the others are compared with onnx; name it as well",
    ),
    (
        {
            "compress__quantize__begin": None,
            "compress__quantize__mode": "dynamic",
            "delivery__targets": ["onnx", "executorch"],
        },
        "delivery.targets: executorch does not take compress.quantize.mode=dynamic",
    ),
    (
        {
            "compress__quantize__begin": None,
            "compress__quantize__mode": "bfloat16",
            "delivery__targets": ["onnx", "litert"],
        },
        "delivery.targets: litert does not take compress.quantize.mode=bfloat16; use float16",
    ),
    ({"distil__temperature": 0.0}, "distil.temperature=0.0: expected a number above 0"),
    ({"distil__soft_weight": 1.1}, "distil.soft_weight=1.1: expected a number at least 0 and at most 1"),
    (
        {"distil__losses": {"soft": 1.0}},
        "distil.losses='soft': did you mean 'soft_labels'? Choices: attention_transfer",
    ),
    ({"delivery__targets": ["onnx", "openvno"]}, "delivery.targets='openvno': did you mean 'openvino'?"),
    ({"delivery__opset": 17}, "delivery.opset=17: expected a whole number, 18 to"),
    ({"teacher": "resnet_20"}, "teacher='resnet_20': did you mean 'resnet20'?"),
    ({"teacher": "cnn"}, "teacher_fit.max_epochs=0: expected at least 1, as no teacher_checkpoint is given"),
    (
        {"teacher_checkpoint": "runs/x/teacher"},
        "teacher_checkpoint='runs/x/teacher': expected none, as teacher is null",
    ),
    ({"compress__prune__amount": None, "compress__quantize__begin": None}, "teacher=null: nothing to do"),
    ({"trainer__max_epochs": 0}, "trainer.max_epochs=0: expected at least 1, or -1 with trainer.max_steps above 0"),
    ({"trainer__max_epochs": 0, "trainer__max_steps": 5}, "trainer.max_epochs=0: expected at least 1, or -1"),
    ({"trainer__max_epochs": -1}, "trainer.max_epochs=-1: expected at least 1, or -1 with trainer.max_steps above 0"),
    ({"trainer__precision": "bf16-true"}, "trainer.precision='bf16-true': did you mean 'bf16-mixed'?"),
    ({"trainer__strategy": "ddp_spawn"}, "trainer.strategy='ddp_spawn': did you mean 'ddp'?"),
    (
        {"trainer__sync_batchnorm": True, "trainer__accelerator": "cpu"},
        "trainer.sync_batchnorm=true: torch synchronises batch norm between GPUs alone; set false",
    ),
    (
        {"trainer__strategy": "fsdp", "compress__prune__amount": None, "compress__quantize__begin": 0.5},
        "trainer.strategy=fsdp: quantization needs whole weights on every device; use ddp",
    ),
    ({"trainer__strategy": "fsdp"}, "trainer.strategy=fsdp: pruning needs whole weights on every device; use ddp"),
    ({"optimizer__momentum": 0.0}, "optimizer.nesterov=true: needs optimizer.momentum above 0"),
    ({"distil__losses": {"soft_labels": -1.0}}, "distil.losses.soft_labels=-1.0: expected a number at least 0"),
    ({"distil__losses": {"soft_labels": 0.0}}, "distil.losses={'soft_labels': 0.0}: expected one weight above 0"),
    ({"delivery__targets": []}, "delivery.targets=[]: expected one at least. Choices: onnx, openvino"),
    ({"trainer__accelerator": "gpuu"}, "trainer.accelerator='gpuu': did you mean 'gpu'?"),
    ({"trainer__precision": "bf16-mixd"}, "trainer.precision='bf16-mixd': did you mean 'bf16-mixed'?"),
    ({"trainer__strategy": "dpp"}, "trainer.strategy='dpp': did you mean 'ddp'?"),
    ({"trainer__devices": "two"}, "trainer.devices='two': expected a number of devices"),
    ({"trainer__devices": 0}, "trainer.devices=0: expected a number of devices"),
    ({"trainer__limit_train_batches": -3}, "trainer.limit_train_batches=-3: expected a number of batches, or a share"),
    ({"trainer__limit_val_batches": 1.5}, "trainer.limit_val_batches=1.5: expected a number of batches, or a share"),
    ({"trainer__gradient_clip_val": 0.0}, "trainer.gradient_clip_val=0.0: expected a number above 0"),
    ({"trainer__accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches=0: expected a whole number, 1 or more"),
    ({"student_options": {"widht": 4}}, "student_options: model resnet20: no option 'widht'; did you mean 'width'?"),
    ({"student_options": {"width": 0}}, "student_options: model resnet20: width=0, expected an integer of at least 1"),
    ({"data_options": {"sauce": "idx"}}, "data_options: data fashion_mnist: no option 'sauce'; did you mean 'source'?"),
    ({"id": "../elsewhere"}, "id='../elsewhere': expected letters, digits"),
    ({"id": ".."}, "id='..': expected letters, digits"),
    ({"id": "a/b"}, "id='a/b': expected letters, digits"),
    ({"id": "a\n"}, "id='a\\n': expected letters, digits"),
]


@pytest.mark.parametrize(("changes", "says"), UNSOUND, ids=lambda value: str(value)[:40])
def test_unsound_recipes_are_told_in_one_line(changes, says):
    with pytest.raises(RecipeError) as caught:
        check(recipe(**changes))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_setting_without_effect_warns():
    with pytest.warns(RecipeWarning, match="distil has no effect, as teacher is null"):
        check(recipe(distil__temperature=2.0))


def searching(**changes):
    plain = {"compress__prune__amount": None, "compress__quantize__begin": None, "student_checkpoint": "folder"}
    return recipe(**({"max_drop": 0.01} | plain | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_drop": "1%"},
        {"max_drop": None, "budget": "20 min"},
        {"max_drop": None, "target": {"latency_ms": 2.0, "bytes": "50%"}},
        {"student_checkpoint": None, "student_fit__max_epochs": 2},
    ],
    ids=str,
)
def test_a_search_needs_a_trained_student_and_nothing_else(changes):
    made = searching(**changes)
    assert made.searches
    assert check(made) is made


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_drop": [1]}, r"max_drop=\[1\]: expected a number, or text such as '1%'"),
        ({"budget": True}, "budget=True: expected a number, or text such as '20min'"),
        ({"target": {"bytes": {"of": 3}}}, r"target\.bytes=.*expected a number, or text such as '50%'"),
        ({"teacher": "cnn"}, "teacher: a recipe with max_drop searches for it"),
        ({"compress__prune__amount": 0.5}, r"compress\.prune\.amount: a recipe with max_drop searches for it"),
        ({"compress__quantize__begin": 0.5}, r"compress\.quantize\.begin: a recipe with max_drop searches for it"),
        ({"compress__quantize__mode": "static"}, r"compress\.quantize\.mode: a recipe with max_drop searches for it"),
        ({"student_checkpoint": None}, "max_drop: a trained model is compressed; give student_checkpoint"),
        ({"student": "from_teacher"}, "student=from_teacher: a recipe with max_drop has no teacher"),
        ({"delivery__targets": ["onnx", "litert"]}, r"delivery\.targets: a recipe with max_drop measures onnx"),
    ],
    ids=str,
)
def test_what_a_search_decides_itself_is_refused_beside_it(changes, said):
    with pytest.raises(RecipeError, match=said):
        check(searching(**changes))


def test_settings_of_a_run_that_does_not_search_are_what_they_were():
    """Checkpoints and fingerprints of before there were searches stay good."""
    assert not {"max_drop", "target", "budget"} & set(settings_of(recipe()))
    assert settings_of(searching(target={"bytes": "50%"}))["target.bytes"] == "50%"
