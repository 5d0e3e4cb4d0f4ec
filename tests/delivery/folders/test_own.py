"""Models that no registry builds: out of a folder comes what went in, given an instance of the class, or one line."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from own_nets import Net
from torch import nn

import lighten
from lighten.delivery.folders.own import can_be_imported, class_of
from lighten.errors import UserError

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Pair(nn.Module):
    """A body of which a part alone is compressed, called with a dict."""

    def __init__(self, width=16):
        super().__init__()
        self.body, self.head = Net(width), nn.Linear(4, 3)

    def forward(self, image):
        return {"logits": self.head(self.body(image).relu())}


def fresh(width=16, seed=7):
    torch.manual_seed(seed)
    return Net(width)


def pruned(model, amount=0.5, example=IMAGES):
    return lighten.shrink(model, lighten.plan_pruning(model, example, amount))


def quantized(model):
    return lighten.quantize_post_training(model, [IMAGES])


STEPS = {
    "nothing": [],
    "prune": [pruned],
    "prune twice": [pruned, lambda model: pruned(model, 0.25)],
    "quantize": [quantized],
    "prune, quantize": [pruned, quantized],
    "quantize, prune": [lambda m: lighten.calibrate_(lighten.quantize_(m, example_input=IMAGES), [IMAGES]), pruned],
    "prune twice, quantize": [pruned, lambda model: pruned(model, 0.25), quantized],
    "prune, float16": [pruned, lambda model: lighten.quantize_post_training(model, mode="float16")],
    "bfloat16 itself": [lambda model: model.to(torch.bfloat16)],
}


@pytest.mark.parametrize("name", STEPS)
def test_a_model_of_ones_own_comes_back_to_the_bit(name, tmp_path):
    model = fresh(seed=0).eval()
    for step in STEPS[name]:
        model = step(model)
    folder = lighten.save(model.eval(), tmp_path / "m")
    own = fresh()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    loaded = lighten.load(folder, model=own)
    expected, found = model.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected)
    x = IMAGES.to(next(model.parameters()).dtype)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    assert own.training
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}
    again = lighten.load(lighten.save(loaded, tmp_path / "again"), model=fresh())
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_what_was_done_to_a_part_is_done_again(tmp_path):
    torch.manual_seed(0)
    model = Pair().eval()
    model.body = quantized(pruned(model.body))
    loaded = lighten.load(lighten.save(model, tmp_path / "m"), model=Pair())
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES)["logits"], model(IMAGES)["logits"])
    assert loaded.body.first.out_channels == 8


def test_a_part_that_a_callback_pruned_is_cut_again(tmp_path):
    torch.manual_seed(0)
    model = Pair().eval()
    plan = replace(lighten.plan_pruning(model.body, IMAGES, 0.5), part="body")  # as Prune(module="body") makes it
    small = lighten.shrink(model, plan)
    loaded = lighten.load(lighten.save(small, tmp_path / "m"), model=Pair())
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES)["logits"], small(IMAGES)["logits"])


def test_a_network_of_a_library_with_keywords(tmp_path):
    settings = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    ids = torch.randint(1, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(settings).eval()
    small = lighten.quantize_post_training(lighten.shrink(model, lighten.plan_pruning(model, words, 0.5)), [words])
    loaded = lighten.load(
        lighten.save(small, tmp_path / "m"), model=transformers.BertForSequenceClassification(settings)
    )
    with torch.no_grad():
        assert torch.equal(loaded(**words).logits, small(**words).logits)


def test_a_folder_names_the_class_and_asks_for_an_instance(tmp_path):
    folder = lighten.save(fresh(), tmp_path / "m")
    config = folder / "config.json"
    assert json.loads(config.read_text())["class"] == "own_nets.Net"
    with pytest.raises(
        UserError, match=r"config\.json: holds the weights of own_nets\.Net and no registry builds it; give"
    ):
        lighten.load(folder)
    for name in ("__main__.Net", "gone_package.nets.Net", "own_nets.build.<locals>.Net"):
        config.write_text(json.dumps({"schema": 1, "class": name}))
        with pytest.raises(
            UserError, match=rf"{name}, a class that cannot be imported here, and no registry"
        ) as caught:
            lighten.load(folder)
        assert "\n" not in str(caught.value)
        assert not can_be_imported(name)


def test_a_class_of_a_script_or_function_is_saved_and_loaded(tmp_path):
    class Local(Net):
        pass

    model = Local(16)
    assert class_of(quantized(model)) == class_of(model)
    folder = lighten.save(quantized(pruned(model)), tmp_path / "m")
    with pytest.raises(UserError, match=r"<locals>\.Local, a class that cannot be imported here"):
        lighten.load(folder)
    assert lighten.load(folder, model=Local(16)).first.out_channels == 8
    (folder / "config.json").write_text(json.dumps({"schema": 1, "class": "__main__.Local"}))
    assert lighten.load(folder, model=Local(16)).first.out_channels == 8


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            lambda: nn.Linear(4, 3),
            r"holds the weights of own_nets\.Net, and model= is of torch\.nn\.modules\.linear\.Linear",
        ),
        (lambda: fresh(24), r"layer '.*' does not match the plan: .* expected 16 in dimension"),
        (lambda: pruned(fresh()), "model= is a Net that was pruned or quantized; give one as it was before"),
        (lambda: quantized(fresh()), "model= is a Net that was pruned or quantized; give one as it was before"),
        (lambda: Net, "expected an instance of nn.Module"),
    ],
)
def test_another_model_is_refused_in_one_line(given, says, tmp_path):
    folder = lighten.save(quantized(pruned(fresh())), tmp_path / "m")
    with pytest.raises(UserError, match=says) as caught:
        lighten.load(folder, model=given())
    assert "\n" not in str(caught.value)


def test_other_shapes_of_a_plain_model_are_one_line(tmp_path):
    folder = lighten.save(fresh(), tmp_path / "m")
    says = (
        r"model\.safetensors: 'first\.weight' is \(24, 3, 3, 3\) in Net, and \(16, 3, 3, 3\) in the folder; give model="
    )
    with pytest.raises(UserError, match=says):
        lighten.load(folder, model=fresh(24))


def test_quantizers_that_stand_elsewhere_are_told(tmp_path):
    folder = lighten.save(quantized(fresh()), tmp_path / "m")
    path = folder / "compression.json"
    found = json.loads(path.read_text())
    found["layers"][0]["input"][0] -= 1
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"compression\.json: 'first' is quantized otherwise than the folder says"):
        lighten.load(folder, model=fresh())


def test_a_state_that_is_no_tensor_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"version": 2}

    with pytest.raises(UserError, match="Extra cannot be saved: '_extra_state' of its state is a dict"):
        lighten.save(Extra(2, 2), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_folder_of_a_registry_takes_an_instance_too(tmp_path):
    def built():
        return lighten.build_model("cnn", num_classes=4, input_shape=(3, 12, 12), widths=[8, 16]).eval()

    model = quantized(pruned(built()))
    folder = lighten.save(model, tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(lighten.load(folder, model=built())(IMAGES), model(IMAGES))
        assert torch.equal(lighten.load(folder)(IMAGES), model(IMAGES))
