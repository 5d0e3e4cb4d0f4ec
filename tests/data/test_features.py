import pyarrow as pa
import pytest

from lighten.data.features import Choice, choose_features, read_cells
from lighten.errors import UserError

COUNT = 40


def table(**more):
    return pa.table(
        {
            "age": [20 + i * 7 % 31 for i in range(COUNT)],
            "sex": ["mf"[i % 2] for i in range(COUNT)],
            "year": [2000 + i % 4 for i in range(COUNT)],
            "price": [1.5 * i for i in range(COUNT)],
        }
        | more
    )


def chosen(rows, targets=("price",), **options):
    return choose_features(rows, Choice(targets, **options), "t.csv")


def test_all_but_the_target():
    assert chosen(table()) == ({"age": "number", "sex": "category", "year": "number"}, [])


def test_named_ones_in_their_order():
    assert chosen(table(), features=("sex", "age")) == ({"sex": "category", "age": "number"}, [])


def test_numbers_can_be_categories():
    kinds, _ = chosen(table(), categories=("year",))
    assert kinds["year"] == "category"
    cells = read_cells(table(), kinds, "t.csv")
    assert cells.categories["year"].to_pylist()[:2] == ["2000", "2001"]
    assert list(cells.numbers) == ["age"]


def test_groups_and_excluded_columns_are_no_features():
    assert set(chosen(table(), exclude=("age",), group="sex")[0]) == {"year"}


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("row", list(range(COUNT)), "it counts the rows"),
        ("", list(range(1, COUNT + 1)), "it counts the rows"),
        ("patient_id", [i * 37 % 1009 for i in range(COUNT)], "it names the rows"),
        ("PatientID", [i * 37 % 1009 for i in range(COUNT)], "it names the rows"),
        ("PID", [i * 37 % 1009 for i in range(COUNT)], "it names the rows"),
        ("name", [f"n{i}" for i in range(COUNT)], "40 different texts in 40 rows"),
        ("ticket", [f"n{i % 21}" for i in range(COUNT)], "21 different texts in 40 rows"),
        ("nothing", [None] * COUNT, "it is empty"),
        ("blank", ["NA", ""] * (COUNT // 2), "it is empty"),
    ],
)
def test_columns_that_only_name_the_rows_are_left_out(name, values, why):
    kinds, notes = chosen(table(**{name: values}))
    assert name not in kinds
    assert notes == [f"column {name!r} is left out: {why}"]
    if why != "it is empty":
        assert name in chosen(table(**{name: values}), features=(name,))[0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("humid", [i * 37 % 1009 for i in range(COUNT)]),
        ("weight_id", [i % 9 for i in range(COUNT)]),
        ("id", [i * 1.1 for i in range(COUNT)]),
        ("town", [f"n{i % 20}" for i in range(COUNT)]),
        ("step", [10 * i for i in range(COUNT)]),
    ],
)
def test_columns_that_say_more_stay(name, values):
    assert name in chosen(table(**{name: values}))[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"features": ("agee",)}, "t.csv: features='agee', but it has no such column; did you mean 'age'?"),
        ({"categories": ("yeer",)}, "categories='yeer', but it has no such column; did you mean 'year'?"),
        ({"exclude": ("Sex",)}, "exclude='Sex', but it has no such column; did you mean 'sex'?"),
        ({"group": "sx"}, "group_column='sx', but it has no such column; did you mean 'sex'?"),
        ({"targets": ("prize",)}, "label='prize', but it has no such column; did you mean 'price'?"),
        ({"targets": ("price", "prize")}, "label_columns='prize', but it has no such column"),
        ({"targets": ("price", "price")}, "label_columns names 'price' twice; name it once"),
        ({"features": ("age", "age")}, "features names 'age' twice; name it once"),
        ({"features": ("age", "price")}, "features has 'price', which is to be predicted; leave it out"),
        ({"categories": ("price",)}, "categories has 'price', which is to be predicted"),
        ({"features": ("age", "sex"), "group": "sex"}, "features has 'sex', which is group_column"),
        ({"features": ("age",), "categories": ("sex",)}, "categories has 'sex', which is no feature"),
        ({"exclude": ("sex",), "categories": ("sex",)}, "categories has 'sex', which is no feature"),
        ({"features": ("age",), "exclude": ("sex",)}, "exclude has no effect where features says which columns"),
        ({"exclude": ("age", "sex", "year")}, "no column is left for features beside price; name some"),
    ],
)
def test_bad_choices(options, says):
    with pytest.raises(UserError) as caught:
        chosen(table(), **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_left_out_is_told_where_nothing_is_left():
    with pytest.raises(
        UserError, match=r"no column is left for features beside price; column 'n' is left out: it count"
    ):
        chosen(table(n=list(range(COUNT))), exclude=("age", "sex", "year"))


def test_bad_columns():
    with pytest.raises(UserError, match=r"t\.csv: column 'void' of features is empty; leave it out"):
        chosen(table(void=[None] * COUNT), features=("void",))
    with pytest.raises(UserError, match=r"t\.csv: column 'list' holds list<"):
        chosen(table(list=[[1]] * COUNT), categories=("list",))
    twice = pa.Table.from_arrays([pa.array([1, 2])] * 3, ["a", "a", "price"])
    with pytest.raises(UserError, match=r"t\.csv has more than one column 'a'; rename or remove one"):
        chosen(twice)


def test_another_table_has_to_have_the_same_columns():
    with pytest.raises(UserError, match=r"test\.csv: features='age', but it has no such column; did you mean 'aged'\?"):
        read_cells(pa.table({"aged": [1]}), {"age": "number"}, "test.csv")


def test_a_file_without_a_head_line_is_told():
    _, notes = choose_features(pa.table({"0.5": ["1", "2.5"], "1": ["0", "1"]}), Choice(("1",)), "t.csv")
    assert notes == ["the names of the columns are numbers: if they are a row of data, put a line of names above it"]
