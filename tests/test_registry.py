"""Names, arguments and the messages about both."""

import pytest

from ballot.errors import UserError, suggest
from ballot.registry import Entry, Registry
from ballot.scripts import script_main


@pytest.fixture
def losses():
    registry = Registry("criterion")

    @registry.register("focal", source="Lin et al., 2017")
    def focal(num_classes, *, gamma=2.0):
        return ("focal", num_classes, gamma)

    @registry.register("needy")
    def needy(num_classes, *, weight):
        return num_classes, weight

    @registry.family("lib:", lambda: ["lib:a", "lib:b"])
    def from_library(name):
        return Entry(name, lambda num_classes, **args: (name, num_classes, args))

    return registry


def test_a_registered_function_is_made_by_name_with_arguments(losses):
    assert losses.create("focal", 3, args={"gamma": 1}) == ("focal", 3, 1)
    assert losses.entry("focal").info == {"source": "Lin et al., 2017"}


def test_a_family_makes_every_name_that_it_lists_and_no_other(losses):
    assert losses.create("lib:b", 2, args={"x": 1}) == ("lib:b", 2, {"x": 1})
    assert "lib:a" in losses and "lib:c" not in losses
    assert losses.names() == ["focal", "needy", "lib:a", "lib:b"]
    assert losses.names(families=False) == ["focal", "needy"]


@pytest.mark.parametrize(
    "name, args, message",
    [
        ("focl", {}, "unknown criterion 'focl'; did you mean 'focal'?"),
        ("FOCAL", {}, "did you mean 'focal'?"),
        ("focal", {"gama": 1}, "takes no argument 'gama'; did you mean 'gamma'?"),
        ("focal", {"num_classes": 4}, "takes no argument 'num_classes'"),
        ("needy", {}, "needs 'weight'"),
    ],
)
def test_a_wrong_name_or_argument_is_told_with_the_right_one(losses, name, args, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        losses.create(name, 3, args=args)


def test_a_type_error_from_inside_a_builder_is_not_hidden(losses):
    @losses.register("broken")
    def broken(num_classes):
        return num_classes + "x"

    with pytest.raises(TypeError):
        losses.create("broken", 3)


def test_a_name_is_registered_once(losses):
    with pytest.raises(UserError, match="registered twice"):
        losses.register("focal")(lambda: None)


def test_suggestions_list_the_choices_where_nothing_is_near():
    assert suggest("zzz", ["alpha", "beta"]) == "; choose one of alpha, beta"
    assert suggest("zzz", map(str, range(1000))) == ""


def test_guard_turns_errors_into_one_line_and_a_status(capsys):
    def fail(_argv):
        raise UserError("file.json: is\nno JSON; write some")

    assert script_main(fail)([]) == 2
    assert capsys.readouterr().err == "error: file.json: is no JSON; write some\n"
    assert script_main(lambda _argv: 0)([]) == 0
