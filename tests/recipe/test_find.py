from lighten.recipe import find
from lighten.recipe.compose import compose_all
from lighten.recipe.find import recipe_files


def test_a_folder_adds_to_what_comes_with_lighten_and_overrides_it(tmp_path, monkeypatch):
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    for folder, names in ((own, ("b", "c")), (theirs, ("a", "b"))):
        folder.mkdir()
        for name in names:
            text = f"compress: {{prune: {{amount: 0.5}}}}\nseed: {1 if folder == own else 2}\n"
            (folder / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(find, "shipped", lambda name: theirs)
    assert recipe_files(own) == {"a": theirs / "a.yaml", "b": own / "b.yaml", "c": own / "c.yaml"}
    assert [compose_all([f"recipe={name}"], own)[0].seed for name in "abc"] == [2, 1, 1]


def test_without_a_folder_there_are_those_of_lighten(tmp_path):
    assert {"smoke", "distil_cnn"} <= set(recipe_files(tmp_path / "none"))
    (tmp_path / "file").touch()
    assert {"smoke", "distil_cnn"} <= set(recipe_files(tmp_path / "file"))
